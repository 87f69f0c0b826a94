//! [`Vcpu`]: a processor of /dev/kvm, with a bare payload of 64 bits that writes patterns, or compares memory with its shadow.
//!
//! | guest physical | what |
//! |---|---|
//! | 0 | the memory that is served |
//! | [`SHADOW`] | the shadow |
//! | [`OWN`] | code, page tables: not the guest's, so that no snapshot has them |
//!
//! All of it is mapped one to one, in pages of 2 MiB.

use kvm_bindings::{kvm_regs, kvm_segment};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};

use crate::sys::{Memory, give_memory};

const SHADOW: u64 = 1 << 30;
const OWN: u64 = 2 << 30;
const OWN_BYTES: usize = 2 << 20;
/// In [`OWN`]: one table of the fourth level, one of the third, three of the second.
const TABLES: usize = 0x1000;
const PRESENT: u64 = 0b11;
const LARGE: u64 = 0x80;
/// What the payload says at its end.
const DONE: u16 = 0x10;
const OTHER: u16 = 0x11;

/// `rcx` times: the next of a sequence (xorshift, `rdi`) is written to a place in the `rdx` bytes at `rsi` that it chooses, and to the shadow, `rbx` away.
const WRITE: &[u8] = &[
    0x48, 0x89, 0xf8, 0x48, 0xc1, 0xe0, 0x0d, 0x48, 0x31, 0xc7, // rdi ^= rdi << 13
    0x48, 0x89, 0xf8, 0x48, 0xc1, 0xe8, 0x07, 0x48, 0x31, 0xc7, // rdi ^= rdi >> 7
    0x48, 0x89, 0xf8, 0x48, 0xc1, 0xe0, 0x11, 0x48, 0x31, 0xc7, // rdi ^= rdi << 17
    0x48, 0x89, 0xf8, 0x48, 0xc1, 0xe8, 0x14, // mov rax, rdi; shr rax, 20
    0x48, 0x21, 0xd0, 0x48, 0x01, 0xf0, // and rax, rdx; add rax, rsi
    0x48, 0x89, 0x38, 0x48, 0x89, 0x3c, 0x18, // mov [rax], rdi; mov [rax + rbx], rdi
    0x48, 0xff, 0xc9, 0x75, 0xc9, // dec rcx; jnz to the beginning
    0xe6, 0x10, 0xf4, // out 0x10, al; hlt
];
/// `rcx` words at `rsi` are compared with the shadow.
const COMPARE: &[u8] = &[
    0x48, 0x8b, 0x06, 0x48, 0x3b, 0x04, 0x1e, 0x75,
    0x0c, // mov rax, [rsi]; cmp rax, [rsi + rbx]; jne
    0x48, 0x83, 0xc6, 0x08, 0x48, 0xff, 0xc9, 0x75,
    0xee, // add rsi, 8; dec rcx; jnz to the beginning
    0xe6, 0x10, 0xf4, 0xe6, 0x11,
    0xf4, // out 0x10, al; hlt; and, where they differ: out 0x11, al; hlt
];
const COMPARE_AT: u64 = 0x800;

/// Is there one?
pub(crate) fn is_there() -> bool {
    Kvm::new().is_ok()
}

/// See the module.
pub(crate) struct Vcpu {
    processor: VcpuFd,
    _machine: VmFd,
    _own: Memory,
}

impl Vcpu {
    /// Of a machine with this memory and this shadow, which outlive it.
    pub(crate) fn new(memory: &Memory, shadow: &Memory) -> Self {
        let kvm = Kvm::new().unwrap();
        let machine = kvm.create_vm().unwrap();
        let own = Memory::new(OWN_BYTES, false).unwrap();
        put(&own, 0, WRITE);
        put(&own, usize::try_from(COMPARE_AT).unwrap(), COMPARE);
        for (number, start) in [0, SHADOW, OWN].into_iter().enumerate() {
            let below = TABLES + 0x2000 + number * 0x1000;
            put_entry(
                &own,
                TABLES + 0x1000,
                number,
                (OWN + below as u64) | PRESENT,
            );
            for entry in 0..512 {
                let at = start + ((entry as u64) << 21);
                put_entry(&own, below, entry, at | PRESENT | LARGE);
            }
        }
        put_entry(&own, TABLES, 0, (OWN + TABLES as u64 + 0x1000) | PRESENT);
        for (slot, (at, memory)) in (0..).zip([(0, memory), (SHADOW, shadow), (OWN, &own)]) {
            give_memory(&machine, slot, at, memory);
        }
        let processor = machine.create_vcpu(0).unwrap();
        let mut special = processor.get_sregs().unwrap();
        special.cr3 = OWN + TABLES as u64;
        // PAE; protection and paging; long mode.
        (special.cr4, special.cr0, special.efer) = (0x20, 0x8005_0033, 0x500);
        let code = segment(8, 11, true);
        let data = segment(16, 3, false);
        special.cs = code;
        (special.ds, special.es, special.ss) = (data, data, data);
        (special.fs, special.gs) = (data, data);
        processor.set_sregs(&special).unwrap();
        Self {
            processor,
            _machine: machine,
            _own: own,
        }
    }

    /// Writes so many words at random in these bytes, a power of two of them, and in their shadow.
    pub(crate) fn write(&mut self, at: usize, bytes: usize, seed: u64, words: u64) {
        let ended = self.run(kvm_regs {
            rip: OWN,
            rsi: at as u64,
            rdx: bytes as u64 - 8,
            rdi: seed | 1,
            rcx: words,
            ..kvm_regs::default()
        });
        assert_eq!(ended, DONE);
    }

    /// Does it see what was written last?
    pub(crate) fn is_as_its_shadow(&mut self, at: usize, bytes: usize) -> bool {
        let ended = self.run(kvm_regs {
            rip: OWN + COMPARE_AT,
            rsi: at as u64,
            rcx: bytes as u64 / 8,
            ..kvm_regs::default()
        });
        assert!(ended == DONE || ended == OTHER);
        ended == DONE
    }

    fn run(&mut self, registers: kvm_regs) -> u16 {
        let registers = kvm_regs {
            rbx: SHADOW,
            rflags: 2,
            ..registers
        };
        self.processor.set_regs(&registers).unwrap();
        let ended = match self.processor.run().unwrap() {
            VcpuExit::IoOut(port, _) => port,
            other => panic!("the processor ended with {other:?}"),
        };
        // The instruction is over when it runs on.
        match self.processor.run().unwrap() {
            VcpuExit::Hlt => ended,
            other => panic!("the processor ended with {other:?}"),
        }
    }
}

fn segment(selector: u16, kind: u8, is_code: bool) -> kvm_segment {
    kvm_segment {
        limit: u32::MAX,
        selector,
        type_: kind,
        present: 1,
        s: 1,
        g: 1,
        l: u8::from(is_code),
        db: u8::from(!is_code),
        ..kvm_segment::default()
    }
}

fn put(memory: &Memory, at: usize, bytes: &[u8]) {
    for (at, byte) in (at..).zip(bytes) {
        memory.write(at, *byte);
    }
}

fn put_entry(memory: &Memory, table: usize, entry: usize, value: u64) {
    put(memory, table + entry * 8, &value.to_le_bytes());
}
