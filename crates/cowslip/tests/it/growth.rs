//! What a kernel holds more of each time that something is done: of memory, in pages, and of objects, by kind.
//!
//! One difference tells a leak from chance badly: caches of inodes and of names breathe by a hundred objects. So the same is done three times as often, and only what
//! grows in each of the three intervals counts, by more than two units for three times that it was done: a page or an object that is lost each time makes it one
//! for one, and chance would have to be on its side three times running.

use std::collections::BTreeMap;

/// Of each interval.
pub(crate) const TIMES: i64 = 30;
const BOUND: i64 = TIMES * 2 / 3;

/// Of sh(1): writes down what there is. What is only kept for the next who may want it is given back first; what is freed when nobody looks at it any more (RCU) takes a moment.
pub(crate) const MEASURE: &str = r#"
measure() {
    for round in 1 2 3; do
        sync; echo 3 >/proc/sys/vm/drop_caches; sleep 0.2
        for cache in /sys/kernel/slab/*/shrink; do echo 1 >"$cache"; done
    done
    echo "== measured"; while read -r line; do echo "$line"; done </proc/meminfo
    while read -r line; do echo "$line"; done </proc/slabinfo
}
"#;

/// Not lost: a thread's stack leaves one behind, and the kernel collects them when they cover 32 MiB (`lazy_max_pages()`). What they cover is freed: see `VmallocUsed` and `KernelStack`.
const COLLECTED_LATER: &str = "vmap_area";

/// What was measured once: pages and objects.
#[derive(Default)]
struct Held(BTreeMap<String, i64>);

impl Held {
    fn parse(text: &str) -> Self {
        let mut kib = BTreeMap::new();
        let mut held = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let (name, number) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
            let Ok(number) = number.parse::<i64>() else {
                continue;
            };
            match name.strip_suffix(':') {
                Some(name) => drop(kib.insert(name, number)),
                None => drop(held.0.insert(format!("objects of {name}"), number)),
            }
        }
        let free = ["MemFree", "Buffers", "Cached", "SReclaimable"].map(|name| kib[name]);
        let taken = kib["MemTotal"] - free.iter().sum::<i64>();
        held.0.insert("pages taken".into(), taken / 4);
        for name in [
            "SUnreclaim",
            "KernelStack",
            "PageTables",
            "VmallocUsed",
            "Percpu",
        ] {
            held.0.insert(format!("pages of {name}"), kib[name] / 4);
        }
        held
    }
}

/// Of what was measured before, between and after three intervals: what grew in each of them.
pub(crate) fn grown(measured: &str) -> Vec<String> {
    let held: Vec<_> = measured
        .split("== measured")
        .skip(1)
        .map(Held::parse)
        .collect();
    assert_eq!(held.len(), 4, "{measured}");
    let growth = |name: &String| {
        let counts: Vec<_> = held
            .iter()
            .map(|held| held.0.get(name).unwrap_or(&0))
            .collect();
        let each: Vec<_> = counts.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let is_grown = each.iter().all(|growth| *growth > BOUND);
        is_grown.then(|| format!("{name}: {counts:?}"))
    };
    let names = held[3]
        .0
        .keys()
        .filter(|name| !name.ends_with(COLLECTED_LATER));
    names.filter_map(growth).collect()
}

#[test]
fn what_grows_each_time_is_told_from_what_breathes() {
    let measured = |free: i64, leaked: i64, breathing: i64| {
        format!(
            "== measured\nMemTotal: 1000000 kB\nMemFree: {free} kB\nBuffers: 0 kB\nCached: 500 kB\nSReclaimable: 9 kB\nSUnreclaim: 80 kB\n\
             KernelStack: 4 kB\nPageTables: 4 kB\nVmallocUsed: 4 kB\nPercpu: 4 kB\nslabinfo - version: 2.1\n\
             leaked {leaked} 100 64 : tunables\nbreathing {breathing} 100 64\nvmap_area {leaked} 1 64\n"
        )
    };
    let four = [
        (9000, 5, 300),
        (8880, 35, 500),
        (8760, 65, 505),
        (8640, 95, 700),
    ];
    let text: String = four.map(|(a, b, c)| measured(a, b, c)).concat();
    let grown = grown(&text);
    let names: Vec<_> = grown
        .iter()
        .map(|line| line.split(':').next().unwrap())
        .collect();
    assert_eq!(names, ["objects of leaked", "pages taken"], "{grown:?}");
}
