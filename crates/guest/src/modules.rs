//! Which of a kernel's modules go into an initramfs, and in which order.

/// A disk takes a dozen.
const MODULES_MAX: usize = 64;

/// The paths of these modules in a `modules.dep`, each behind those that it needs. What is not there is built in. Nothing where they are more than 64: the list may
/// come from a hostile image.
pub fn in_order<'a>(modules_dep: &'a str, wanted: &[&str]) -> Option<Vec<&'a str>> {
    let mut order: Vec<&str> = Vec::new();
    for wanted in wanted {
        let mut lines = modules_dep.lines().filter_map(|line| line.split_once(':'));
        let Some((path, below)) = lines.find(|(path, _)| name(path) == *wanted) else {
            continue;
        };
        // modules.dep(5): all that it needs, however far below, what is needed first coming last.
        for path in below.split_whitespace().rev().chain([path]) {
            if order.contains(&path) {
                continue;
            }
            if order.len() == MODULES_MAX {
                return None;
            }
            order.push(path);
        }
    }
    Some(order)
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
        let order = in_order(dep, &["virtio_blk", "built_in", "virtio_ring", "virtio"]).unwrap();
        let wanted = [
            "kernel/a/virtio.ko",
            "kernel/a/virtio-ring.ko.xz",
            "kernel/b/virtio_blk.ko",
        ];
        assert_eq!(order, wanted);
        assert_eq!(in_order(dep, &[]).unwrap(), [""; 0]);
    }

    #[test]
    fn a_list_that_never_ends_is_none() {
        let list = |count: usize| {
            let below: String = (1..count).map(|i| format!(" {i}.ko")).collect();
            format!("ext4.ko:{below}\n")
        };
        let order = |count| in_order(&list(count), &["ext4"]).map(|order| order.len());
        assert_eq!(order(MODULES_MAX), Some(MODULES_MAX));
        assert_eq!(order(MODULES_MAX + 1), None);
    }
}
