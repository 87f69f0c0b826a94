//! The zero check beside the candidates that it was chosen from.
#![allow(
    missing_docs,
    reason = "criterion's macros make undocumented functions"
)]

use std::hint::black_box;

use cowslip_block::zero::is_zero;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

static ZEROS: [u8; 65536] = [0; 65536];

fn sampled(bytes: &[u8], rest: impl Fn(&[u8]) -> bool) -> bool {
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
        return true;
    };
    first | bytes[bytes.len() / 2] | last == 0 && rest(bytes)
}

fn zero_page<const N: usize>(bytes: &[u8]) -> bool {
    sampled(bytes, |b| b.chunks(N).all(|p| p == &ZEROS[..p.len()]))
}

fn shifted(bytes: &[u8]) -> bool {
    sampled(bytes, |b| b[1..] == b[..b.len() - 1])
}

fn or_words<const N: usize>(bytes: &[u8]) -> bool {
    sampled(bytes, |b| {
        let (pieces, rest) = b.as_chunks::<N>();
        pieces.iter().all(|piece| {
            let (words, _) = piece.as_chunks::<8>();
            words.iter().fold(0, |or, w| or | u64::from_ne_bytes(*w)) == 0
        }) && rest.iter().fold(0, |or, b| or | b) == 0
    })
}

type Candidate = (&'static str, fn(&[u8]) -> bool);
const CANDIDATES: [Candidate; 9] = [
    ("is_zero", is_zero),
    ("zero page of 4 KiB", zero_page::<4096>),
    ("zero page of 1 KiB", zero_page::<1024>),
    ("zero page of 64 KiB", zero_page::<65536>),
    ("shifted by one", shifted),
    ("or of words, 128", or_words::<128>),
    ("or of words, 256", or_words::<256>),
    ("or of words, 512", or_words::<512>),
    ("or of words, 1024", or_words::<1024>),
];

fn zero(c: &mut Criterion) {
    for (size, len) in [("4KiB", 4096usize), ("2MiB", 2 << 20)] {
        let zeros = vec![0u8; len];
        let noise: Vec<u8> = (0..len)
            .map(|i| u8::try_from(i % 255).expect("below 255") | 1)
            .collect();
        // The sample misses it: the compare has to find it, half-way.
        let mut hidden = zeros.clone();
        hidden[len / 2 + 100] = 1;
        for (what, bytes) in [("zero", &zeros), ("data", &noise), ("hidden", &hidden)] {
            let mut group = c.benchmark_group(format!("zero/{size}/{what}"));
            group.throughput(Throughput::Bytes(len as u64));
            for (name, check) in CANDIDATES {
                group.bench_function(name, |b| b.iter(|| check(black_box(bytes))));
            }
            group.finish();
        }
    }
}

criterion_group!(benches, zero);
criterion_main!(benches);
