//! Which of a kernel's modules go into an initramfs, and in which order.

/// The paths of these modules in a `modules.dep`, each behind those that it needs. What is not there is built in.
pub fn in_order<'a>(modules_dep: &'a str, wanted: &[&str]) -> Vec<&'a str> {
    let mut order: Vec<&str> = Vec::new();
    for wanted in wanted {
        let mut lines = modules_dep.lines().filter_map(|line| line.split_once(':'));
        let Some((path, below)) = lines.find(|(path, _)| name(path) == *wanted) else {
            continue;
        };
        // modules.dep(5): all that it needs, however far below, what is needed first coming last.
        for path in below.split_whitespace().rev().chain([path]) {
            if !order.contains(&path) {
                order.push(path);
            }
        }
    }
    order
}

/// What modprobe(8) calls it.
fn name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    let stem = file.split('.').next().unwrap_or(file);
    stem.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_comes_behind_what_it_needs() {
        let dep = "kernel/a/virtio.ko:\n\
            kernel/a/virtio-ring.ko.xz: kernel/a/virtio.ko\n\
            kernel/b/virtio_blk.ko: kernel/a/virtio-ring.ko.xz kernel/a/virtio.ko\n\
            kernel/b/blk.ko:\n";
        let order = in_order(dep, &["virtio_blk", "built_in", "virtio_ring", "virtio"]);
        let wanted = [
            "kernel/a/virtio.ko",
            "kernel/a/virtio-ring.ko.xz",
            "kernel/b/virtio_blk.ko",
        ];
        assert_eq!(order, wanted);
        assert_eq!(in_order(dep, &[]), [""; 0]);
    }
}
