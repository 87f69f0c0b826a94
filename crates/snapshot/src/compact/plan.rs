//! The policy: when a store wants compaction, and what is rewritten then. Pure.
//!
//! 1. *Garbage*: bytes of layers and headers that no image needs, in objects that some image needs. Where
//!    they are more than a share of what is needed, the emptiest objects are left first, until they are
//!    not: that frees the most for what is copied. Of those, what the last ones made unnecessary stays.
//!    A layer that deltas of others are made against is left only where more of it is garbage than not, and those others with it: their deltas come to be stored whole.
//! 2. *Scatter*: an image that depends on more layers than it should leaves its smallest ones, until
//!    few are left: those are read in the smallest pieces, and cost least to copy. Layers that deltas of others are made against stay.

use std::collections::HashSet;

use roaring::RoaringBitmap;

use super::survey::Survey;
use crate::ids::{HeaderId, LayerId};

/// How much garbage and how much scatter there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Bytes that nobody needs, in percent of those that somebody does.
    pub garbage_percent: u64,
    /// So many bytes are not worth a run, whatever their share.
    pub garbage_bytes_min: u64,
    /// Layers that one image may depend on.
    pub layers_max: u64,
    /// Layers that it depends on afterwards, if it had more.
    pub layers_after: u64,
}

impl Policy {
    /// What is done without being asked for in particular: the store is at most 1.25 times what is
    /// needed, and no image opens more than a hundred files.
    pub const AUTO: Self = Self {
        garbage_percent: 25,
        garbage_bytes_min: 64 << 10,
        layers_max: 128,
        layers_after: 32,
    };
    /// As compact as makes sense.
    pub const FULL: Self = Self {
        garbage_percent: 0,
        garbage_bytes_min: 0,
        layers_max: 8,
        layers_after: 4,
    };
}

/// What is left behind by the next step.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) layers: HashSet<LayerId>,
    pub(super) headers: HashSet<HeaderId>,
    /// What has to be copied for it.
    pub(super) copy_bytes: u64,
}

/// Objects that are not looked at again in one run: they were written in it, left in it, or are
/// damaged.
#[derive(Debug, Default)]
pub(super) struct Done {
    pub(super) layers: HashSet<LayerId>,
    pub(super) headers: HashSet<HeaderId>,
    /// What was there when the run began, once that is known. What is younger is the next run's: one that
    /// wanted no garbage at all would never end beside others who make some.
    begun: Option<(HashSet<LayerId>, HashSet<HeaderId>)>,
}

impl Done {
    pub(super) fn begin(&mut self, survey: &Survey) {
        let layers = survey.layers.iter().map(|(id, _)| *id).collect();
        let headers = survey.headers.iter().map(|(id, _)| *id).collect();
        self.begun = Some((layers, headers));
    }

    fn has_layer(&self, id: LayerId) -> bool {
        let is_younger = |(layers, _): &(HashSet<LayerId>, _)| !layers.contains(&id);
        self.layers.contains(&id) || self.begun.as_ref().is_some_and(is_younger)
    }

    fn has_header(&self, id: HeaderId) -> bool {
        let is_younger = |(_, headers): &(_, HashSet<HeaderId>)| !headers.contains(&id);
        self.headers.contains(&id) || self.begun.as_ref().is_some_and(is_younger)
    }
}

impl Plan {
    pub(super) fn is_empty(&self) -> bool {
        self.layers.is_empty() && self.headers.is_empty()
    }
}

/// Chooses the objects of one step, until `step_bytes` are to be copied: at least one, where there is
/// one to be chosen.
pub(super) struct Choice<'a> {
    survey: &'a Survey,
    policy: Policy,
    step_bytes: u64,
    /// Layers that may be left, by number.
    candidates: RoaringBitmap,
    /// Those with deltas.
    deltas: RoaringBitmap,
    layers: RoaringBitmap,
    plan: Plan,
    is_full: bool,
}

impl<'a> Choice<'a> {
    /// Chooses among `layers` and `headers`, by garbage, leaving out what is done.
    pub(super) fn new(
        survey: &'a Survey,
        policy: Policy,
        (layers, headers): (RoaringBitmap, RoaringBitmap),
        done: &Done,
        step_bytes: u64,
    ) -> Self {
        let is_open = |n: &u32| !done.has_layer(survey.layers[*n as usize].0);
        let candidates = with_dependents(survey, layers.into_iter().filter(is_open).collect());
        let is_open = |n: &u32| !done.has_header(survey.headers[*n as usize].0);
        let headers = headers.into_iter().filter(is_open).collect();
        let mut choice = Self {
            survey,
            policy,
            step_bytes,
            candidates,
            deltas: survey.dependents.values().flatten().collect(),
            layers: RoaringBitmap::new(),
            plan: Plan::default(),
            is_full: false,
        };
        choice.garbage(&headers);
        choice
    }

    pub(super) fn plan(self) -> Plan {
        self.plan
    }

    /// With all whose deltas are made against it, and against them.
    fn layer(&mut self, n: u32) {
        let mut todo = vec![n];
        while let Some(n) = todo.pop() {
            if !self.layers.insert(n) {
                continue;
            }
            let (id, reach) = self.survey.layers[n as usize];
            self.plan.layers.insert(id);
            self.plan.copy_bytes += reach.live_bytes;
            todo.extend(self.survey.dependents.get(&n).into_iter().flatten());
        }
        self.is_full = self.plan.copy_bytes >= self.step_bytes;
    }

    fn garbage(&mut self, headers: &RoaringBitmap) {
        let policy = self.policy;
        let total = self.survey.total();
        let allowed =
            (total.live_bytes / 100 * policy.garbage_percent).max(policy.garbage_bytes_min);
        let mut garbage = total.garbage_bytes();
        let reach = |is_layer: bool, n: u32| match is_layer {
            true => self.survey.layers[n as usize].1,
            false => self.survey.headers[n as usize].1,
        };
        let all = self
            .candidates
            .iter()
            .map(|n| (true, n))
            .chain(headers.iter().map(|n| (false, n)));
        let mut emptiest: Vec<(u64, bool, u32)> = all
            .filter(|(is_layer, n)| reach(*is_layer, *n).garbage_bytes() > 0)
            .map(|(is_layer, n)| {
                let reach = reach(is_layer, n);
                let per_mille =
                    u128::from(reach.live_bytes) * 1000 / u128::from(reach.object_bytes.max(1));
                (u64::try_from(per_mille).unwrap_or(1000), is_layer, n)
            })
            .collect();
        emptiest.sort_unstable();
        let mut chosen = Vec::new();
        let mut copy_bytes = 0;
        for (_, is_layer, n) in emptiest {
            let is_full = copy_bytes >= self.step_bytes && !chosen.is_empty();
            if garbage <= allowed || is_full {
                break;
            }
            let reach = reach(is_layer, n);
            garbage = garbage.saturating_sub(reach.garbage_bytes());
            copy_bytes += reach.live_bytes;
            chosen.push((is_layer, n));
        }
        for (is_layer, n) in chosen {
            // The last one may have freed so much that an earlier one need not be left.
            let with_it = garbage + reach(is_layer, n).garbage_bytes();
            if with_it <= allowed {
                garbage = with_it;
            } else if is_layer {
                self.layer(n);
            } else {
                self.plan.headers.insert(self.survey.headers[n as usize].0);
                self.plan.copy_bytes += reach(false, n).live_bytes;
            }
        }
    }

    /// An image that depends on these layers.
    pub(super) fn image(&mut self, uses: &RoaringBitmap) {
        let mut stay = uses.difference_len(&self.layers);
        // What is left goes into one layer together.
        let now = stay + u64::from(stay < uses.len());
        if now <= self.policy.layers_max {
            return;
        }
        let rest = (uses & &self.candidates) - &self.layers;
        let bases = &self.survey.dependents;
        let rest: RoaringBitmap = rest
            .into_iter()
            .filter(|n| !bases.contains_key(n))
            .collect();
        // Deltas come into a layer of their own: as many layers as before are no gain.
        let left = &rest | &(uses & &self.layers);
        let deltas = left.intersection_len(&self.deltas);
        let after = u64::from(deltas > 0) + u64::from(deltas < left.len());
        if !bases.is_empty() && left.len() <= after {
            return;
        }
        let mut smallest: Vec<u32> = rest.into_iter().collect();
        smallest.sort_by_key(|n| self.survey.layers[*n as usize].1.live_bytes);
        for n in smallest {
            if stay < self.policy.layers_after || self.is_full {
                return;
            }
            stay -= 1;
            self.layer(n);
        }
    }
}

/// Of these layers those that may be left: with each that others' deltas are made against, those others may be, and there is more garbage in it
/// than not.
fn with_dependents(survey: &Survey, mut layers: RoaringBitmap) -> RoaringBitmap {
    loop {
        let stays = |n: &u32| {
            let reach = survey.layers[*n as usize].1;
            let dependents = survey.dependents.get(n);
            dependents.is_some_and(|dependents| {
                reach.garbage_bytes() <= reach.live_bytes || !dependents.is_subset(&layers)
            })
        };
        let stay: RoaringBitmap = layers.iter().filter(stays).collect();
        if stay.is_empty() {
            return layers;
        }
        layers -= stay;
    }
}

#[cfg(test)]
mod tests {
    use super::super::survey::Reach;
    use super::*;
    use uuid::Uuid;

    const KIB: u64 = 1 << 10;

    /// Layers as (stored, live) in KiB.
    fn survey(layers: &[(u64, u64)]) -> Survey {
        let id = |n: usize| LayerId(Uuid::from_u128(n as u128 + 1));
        let reach = |(stored, live): (u64, u64)| Reach {
            object_bytes: stored * KIB,
            live_bytes: live * KIB,
        };
        let layers = layers.iter().enumerate();
        Survey {
            layers: layers.map(|(n, l)| (id(n), reach(*l))).collect(),
            ..Survey::default()
        }
    }

    /// Of images that use these layers.
    fn chosen(
        survey: &Survey,
        images: &[&[u32]],
        policy: Policy,
        done: &[u32],
        step: u64,
    ) -> Vec<u128> {
        let layers = done.iter().map(|n| survey.layers[*n as usize].0).collect();
        let done = Done {
            layers,
            ..Done::default()
        };
        let all = images.iter().flat_map(|image| image.iter()).collect();
        let candidates = (all, RoaringBitmap::new());
        let mut choice = Choice::new(survey, policy, candidates, &done, step);
        for image in images {
            choice.image(&image.iter().collect());
        }
        let plan = choice.plan();
        let mut chosen: Vec<u128> = plan.layers.iter().map(|l| l.0.as_u128() - 1).collect();
        chosen.sort_unstable();
        chosen
    }

    #[test]
    fn the_emptiest_go_first_and_only_as_many_as_must() {
        let all: &[&[u32]] = &[&[0, 1, 2, 3]];
        let store = survey(&[(1000, 1000), (1000, 500), (1000, 100), (1000, 900)]);
        let chosen = |policy, done, step| chosen(&store, all, policy, done, step);
        // 1,500 of garbage on 2,500: a quarter is 625, and the emptiest alone leaves 600.
        assert_eq!(chosen(Policy::AUTO, &[], u64::MAX), [2]);
        assert_eq!(chosen(Policy::AUTO, &[2], u64::MAX), [1, 3]);
        assert_eq!(chosen(Policy::FULL, &[], u64::MAX), [1, 2, 3]);
        assert_eq!(chosen(Policy::FULL, &[], 1), [2]);
    }

    #[test]
    fn what_is_younger_than_the_run_is_left_to_the_next() {
        let mut done = Done::default();
        done.begin(&survey(&[(1000, 100)]));
        let later = survey(&[(1000, 100), (1000, 10)]);
        let candidates = (all(2), RoaringBitmap::new());
        let plan = Choice::new(&later, Policy::FULL, candidates, &done, u64::MAX).plan();
        let chosen: Vec<u128> = plan.layers.iter().map(|l| l.0.as_u128() - 1).collect();
        assert_eq!(chosen, [0]);
    }

    fn all(count: u32) -> RoaringBitmap {
        (0..count).collect()
    }

    #[test]
    fn what_a_larger_one_makes_unnecessary_stays() {
        // All are as empty, but for a little. A quarter is 250; the large one alone leaves 105.
        let store = survey(&[(160, 55), (1000, 350), (595, 595)]);
        let chosen = chosen(&store, &[&[0, 1, 2]], Policy::AUTO, &[], u64::MAX);
        assert_eq!(chosen, [1]);
    }

    /// No map of ours says so.
    #[test]
    fn more_may_be_needed_of_an_object_than_it_has() {
        let store = survey(&[(10, 1000), (1000, 100), (1000, 200)]);
        let chosen = chosen(&store, &[&[0, 1, 2]], Policy::FULL, &[], u64::MAX);
        assert_eq!(chosen, [1]);
    }

    #[test]
    fn garbage_that_is_hardly_any_is_left() {
        for store in [survey(&[(60, 1)]), survey(&[(1000, 900)])] {
            assert_eq!(chosen(&store, &[&[0]], Policy::AUTO, &[], u64::MAX), [0; 0]);
        }
    }

    #[test]
    fn an_image_of_too_many_layers_leaves_its_smallest() {
        let layers: Vec<(u64, u64)> = (1..=129).map(|n| (n, n)).collect();
        let all: Vec<u32> = (0..129).collect();
        let store = survey(&layers);
        let chosen = |images: &[&[u32]]| chosen(&store, images, Policy::AUTO, &[], u64::MAX);
        // 98 become one, and 31 stay.
        let want: Vec<u128> = (0..98).collect();
        assert_eq!(chosen(&[&all[..128], &all]), want);
        assert_eq!(chosen(&[&all[..128]]), [0; 0]);
    }
}
