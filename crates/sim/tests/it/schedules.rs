//! Some schedules of threads over one device, and the bugs that only threads can show.

use std::time::{Duration, Instant};

use cowslip_sim::schedules::explore;

#[test]
fn no_schedule_loses_anything() {
    let until = Instant::now() + Duration::from_secs(300);
    let explored = explore(1, 4000, until);
    assert_eq!(explored.found, None);
    assert!(
        explored.schedules >= 4000,
        "{} in five minutes",
        explored.schedules
    );
}

#[cfg(feature = "planted")]
#[test]
fn schedules_give_planted_races_away() {
    use cowslip_sim::planted::{RACES, missed};
    let hunt = |bug| cowslip_sim::schedules::hunt(bug, 1, Duration::from_secs(300));
    assert_eq!(missed(&RACES, hunt), [""; 0]);
}
