//! [`Regions`]: where a guest's memory lies in its process, and where in its image.
//!
//! ```text
//! process   ....[ region at 0x7f00..., size ]......[ region at 0x7e80... ]....      any order, disjoint
//! image     [ region, offset 0 ][ region, offset 0 + size ]                         in order, from 0 to its end
//! pages     0 1 2 3 ...                                                             numbered as in the image
//! ```
//!
//! Invariants, held from [`Regions::new`] on, whatever the process said:
//! 1. Addresses, sizes and offsets are multiples of the page size; no region is empty; none overlaps another, nor the end of all addresses.
//! 2. In the image they lie one after the other, without a hole, from its first byte to its last.

use std::fmt;
use std::ops::Range;

use cowslip_block::{BlockIndex, BlockRange, BlockSize, ByteOffset};

use crate::limits::REGIONS_MAX;

/// Addresses of user space end at the latest here: half of all that 64 bits hold.
const ADDRESS_END: u64 = 1 << 63;

/// One region, as a process tells of it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// In the process.
    pub address: u64,
    /// Bytes.
    pub size_bytes: u64,
    /// In the image.
    pub offset: u64,
}

impl Region {
    fn addresses(&self) -> Range<u64> {
        self.address..self.address + self.size_bytes
    }

    fn image_end(&self) -> u64 {
        self.offset + self.size_bytes
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            address,
            size_bytes,
            offset,
        } = self;
        write!(
            f,
            "{size_bytes} bytes at {address:#x}, from {offset} of the image"
        )
    }
}

/// Why regions are refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegionsError {
    /// None, or too many.
    #[error("{0} regions, where a guest has 1 to {REGIONS_MAX}")]
    Count(usize),
    /// Empty, or not in whole pages.
    #[error("a region of {region:?} is not in whole pages of {page_bytes} bytes")]
    NotInPages {
        /// The region.
        region: Region,
        /// Bytes in a page.
        page_bytes: u32,
    },
    /// It goes past the last address, or past what an image can have.
    #[error("a region of {0:?} has no end")]
    TooLarge(Region),
    /// Two of them meet.
    #[error("a region of {0:?} overlaps one of {1:?}")]
    Overlap(Region, Region),
    /// In the image, something is before or between them.
    #[error("a region of {0:?} does not begin where the one before it ends, at {1} of the image")]
    Hole(Region, u64),
    /// Not the size of what is to be restored.
    #[error("regions of {found_bytes} bytes together, where the snapshot has {image_bytes}")]
    Size {
        /// What they add up to.
        found_bytes: u64,
        /// What the snapshot has.
        image_bytes: u64,
    },
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Regions {
    page: BlockSize,
    /// By address.
    by_address: Vec<Region>,
    /// By place in the image.
    by_offset: Vec<Region>,
}

impl Regions {
    /// Checks regions against each other and against the image.
    ///
    /// # Errors
    /// [`RegionsError`].
    pub fn new(
        regions: &[Region],
        page: BlockSize,
        image_bytes: u64,
    ) -> Result<Self, RegionsError> {
        if !(1..=REGIONS_MAX).contains(&regions.len()) {
            return Err(RegionsError::Count(regions.len()));
        }
        for region in regions {
            check_one(region, page)?;
        }
        let mut by_address = regions.to_vec();
        by_address.sort_by_key(|region| region.address);
        for pair in by_address.windows(2) {
            if pair[0].addresses().end > pair[1].address {
                return Err(RegionsError::Overlap(pair[0], pair[1]));
            }
        }
        let mut by_offset = regions.to_vec();
        by_offset.sort_by_key(|region| region.offset);
        let mut end = 0;
        for region in &by_offset {
            if region.offset != end {
                return Err(RegionsError::Hole(*region, end));
            }
            end = region.image_end();
        }
        if end != image_bytes {
            return Err(RegionsError::Size {
                found_bytes: end,
                image_bytes,
            });
        }
        Ok(Self {
            page,
            by_address,
            by_offset,
        })
    }

    /// The unit in which the kernel maps this memory.
    pub fn page_size(&self) -> BlockSize {
        self.page
    }

    /// All pages.
    pub fn pages(&self) -> BlockRange {
        let end = self.by_offset.last().map_or(0, Region::image_end);
        BlockRange::new(0, end / u64::from(self.page.bytes()))
    }

    /// The page that an address lies in; nothing for one outside.
    pub fn page_at(&self, address: u64) -> Option<BlockIndex> {
        let after = self.by_address.partition_point(|r| r.address <= address);
        let region = self.by_address.get(after.checked_sub(1)?)?;
        let within = address - region.address;
        (within < region.size_bytes)
            .then(|| self.page.block_floor(ByteOffset(region.offset + within)))
    }

    /// The pages that lie in a range of addresses, wholly or in part; those outside of all regions are left out. A range that goes over several
    /// regions is several runs.
    pub fn pages_in(&self, addresses: Range<u64>) -> impl Iterator<Item = BlockRange> {
        let page = u64::from(self.page.bytes());
        self.by_address.iter().filter_map(move |region| {
            let start = addresses.start.max(region.address);
            let end = addresses.end.min(region.addresses().end);
            let at = |address: u64| region.offset + (address - region.address);
            (start < end).then(|| BlockRange::new(at(start) / page, at(end).div_ceil(page)))
        })
    }

    /// Where pages lie in the process: pieces in the order of the image, each with its pages.
    pub fn addresses_of(
        &self,
        pages: BlockRange,
    ) -> impl Iterator<Item = (BlockRange, Range<u64>)> {
        let page = u64::from(self.page.bytes());
        self.by_offset.iter().filter_map(move |region| {
            let own = BlockRange::new(region.offset / page, region.image_end() / page);
            let run = own.intersect(pages);
            let at = |block: BlockIndex| region.address + (block.0 * page - region.offset);
            (!run.is_empty()).then(|| (run, at(run.start)..at(run.end)))
        })
    }
}

fn check_one(region: &Region, page: BlockSize) -> Result<(), RegionsError> {
    let page_bytes = page.bytes();
    let is_whole = |n: u64| n.is_multiple_of(u64::from(page_bytes));
    let whole = [region.address, region.size_bytes, region.offset];
    if region.size_bytes == 0 || !whole.into_iter().all(is_whole) {
        return Err(RegionsError::NotInPages {
            region: *region,
            page_bytes,
        });
    }
    let ends = [region.address, region.offset].map(|start| start.checked_add(region.size_bytes));
    match ends
        .iter()
        .all(|end| end.is_some_and(|end| end <= ADDRESS_END))
    {
        true => Ok(()),
        false => Err(RegionsError::TooLarge(*region)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PAGE: u64 = 4096;

    fn region(address: u64, pages: u64, page: u64) -> Region {
        Region {
            address: address * PAGE,
            size_bytes: pages * PAGE,
            offset: page * PAGE,
        }
    }

    fn regions(regions: &[Region], pages: u64) -> Result<Regions, RegionsError> {
        Regions::new(regions, BlockSize::DISK, pages * PAGE)
    }

    #[test]
    fn what_a_hostile_process_says_is_refused() {
        let two = [region(10, 4, 0), region(20, 2, 4)];
        regions(&two, 6).unwrap();
        let refused = |list: &[Region], pages: u64| regions(list, pages).unwrap_err();
        assert!(matches!(refused(&[], 0), RegionsError::Count(0)));
        let many: Vec<_> = (0..129).map(|i| region(2 * i, 1, i)).collect();
        assert!(matches!(refused(&many, 129), RegionsError::Count(129)));
        assert!(matches!(
            refused(&[region(1, 0, 0)], 0),
            RegionsError::NotInPages { .. }
        ));
        for field in 0..3 {
            let mut odd = region(10, 4, 0);
            *[&mut odd.address, &mut odd.size_bytes, &mut odd.offset][field] += 512;
            assert!(matches!(
                refused(&[odd], 4),
                RegionsError::NotInPages { .. }
            ));
        }
        let last = region((1 << 51) - 4, 8, 0);
        let wraps = Region {
            address: 0u64.wrapping_sub(PAGE),
            size_bytes: 2 * PAGE,
            offset: 0,
        };
        for endless in [last, wraps] {
            assert!(matches!(refused(&[endless], 8), RegionsError::TooLarge(_)));
        }
        let overlap = [region(10, 4, 0), region(13, 2, 4)];
        assert!(matches!(refused(&overlap, 6), RegionsError::Overlap(..)));
        let same_place = [region(10, 4, 0), region(20, 4, 0)];
        assert!(matches!(refused(&same_place, 4), RegionsError::Hole(..)));
        let hole = [region(10, 4, 0), region(20, 2, 5)];
        assert!(matches!(refused(&hole, 7), RegionsError::Hole(..)));
        assert!(matches!(
            refused(&[region(10, 4, 1)], 5),
            RegionsError::Hole(..)
        ));
        for pages in [5, 7, 0] {
            assert!(matches!(refused(&two, pages), RegionsError::Size { .. }));
        }
    }

    proptest! {
        /// Beside a list of all pages with their addresses.
        #[test]
        fn pages_and_addresses(sizes in prop::collection::vec((1u64..6, 0u64..4), 1..5), order in any::<u64>(), start in 0u64..60, len in 0u64..60) {
            let mut at = 3;
            let mut list = Vec::new();
            for (pages, gap) in &sizes {
                list.push((at, *pages));
                at += pages + gap;
            }
            // In the image they are in another order than in the process.
            let turn = usize::try_from(order % list.len() as u64).unwrap();
            list.rotate_left(turn);
            let mut all = Vec::new();
            let mut given = Vec::new();
            for (address, pages) in &list {
                given.push(region(*address, *pages, all.len() as u64));
                all.extend((0..*pages).map(|i| (address + i) * PAGE));
            }
            let regions = regions(&given, all.len() as u64).unwrap();
            prop_assert_eq!(regions.pages().count().0, all.len() as u64);
            for address in (0..at * PAGE).step_by(512) {
                let twin = all.iter().position(|a| (*a..a + PAGE).contains(&address));
                prop_assert_eq!(regions.page_at(address).map(|p| p.0), twin.map(|p| p as u64));
            }
            let wanted = start * 512..(start + len) * 512;
            let mut found: Vec<u64> = regions.pages_in(wanted.clone()).flat_map(|run| run.iter().map(|b| b.0)).collect();
            found.sort_unstable();
            let twin: Vec<u64> = (0..all.len()).filter(|i| all[*i] < wanted.end && all[*i] + PAGE > wanted.start && !wanted.is_empty()).map(|i| i as u64).collect();
            prop_assert_eq!(found, twin);
            let pages = BlockRange::new(start, start + len);
            let mut found = Vec::new();
            for (run, addresses) in regions.addresses_of(pages) {
                prop_assert_eq!(run.count().0 * PAGE, addresses.end - addresses.start);
                found.extend(run.iter().zip(addresses.step_by(4096)));
            }
            let twin: Vec<_> = pages.iter().filter_map(|b| Some((b, *all.get(usize::try_from(b.0).unwrap())?))).collect();
            prop_assert_eq!(found, twin);
        }
    }
}
