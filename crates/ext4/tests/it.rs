//! Real file systems, made by e2fsprogs and by the kernel; see the modules in `it/`.

#[cfg(test)]
mod it {}
