//! Real file systems, made by e2fsprogs and by the kernel; see the modules in `it/`.

#[cfg(test)]
mod it {
    mod exact;
    mod hostile;
    mod oracle;
    mod read;
    mod replay;
    mod rig;
    mod variants;
}
