//! The templates that cells begin from: one for each way of mkfs.ext4 and each [`Base`], made once and kept.
//!
//! Where the file system is aged, it is mounted with `discard,noatime`, whatever the variant's own options: what differs
//! between cells that share a template is the cells' own doing.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Mutex;

use super::bench::{Bench, Place};
use super::floor::Contents;
use super::hand::Hand;
use super::workloads::Base;
use super::{Scale, programs, tree};
use crate::failure::Failure;

/// How the aged one is mounted while it is filled.
const AGED_WITH: &str = "discard,noatime";

/// Made so far. A name that is there is not made again.
#[derive(Debug, Default)]
pub(crate) struct Templates {
    known: Mutex<HashMap<String, Contents>>,
}

/// One of them.
pub(crate) struct Template {
    pub(crate) name: String,
    pub(crate) contents: Contents,
}

impl Templates {
    /// The template, made if it is not there. One at a time: it takes seconds, and the next one may want the same.
    pub(crate) fn get(
        &self,
        place: &Place,
        mkfs: &[String],
        base: Base,
        (scale, seed): (Scale, u64),
    ) -> Result<Template, Failure> {
        let mut known = self
            .known
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut hasher = DefaultHasher::new();
        (mkfs, seed, scale.0).hash(&mut hasher);
        let what = match base {
            Base::Aged => "aged",
            Base::FreshFile => "file",
            Base::FreshDevice => "device",
        };
        let name = format!("t-{what}-{:016x}", hasher.finish());
        if let Some(contents) = known.get(&name) {
            return Ok(Template {
                name,
                contents: contents.clone(),
            });
        }
        let noted = place.at(&format!("{name}.json"));
        let contents = match fs::read(&noted)
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok())
        {
            Some(contents) => contents,
            None => {
                let made = make(place, &name, mkfs, base, (scale, seed))?;
                let text = serde_json::to_vec(&made).map_err(|e| Failure::failed(e.to_string()))?;
                fs::write(&noted, text).map_err(|e| Failure::file(&noted, &e))?;
                made
            }
        };
        known.insert(name.clone(), contents.clone());
        Ok(Template { name, contents })
    }
}

fn make(
    place: &Place,
    name: &str,
    mkfs: &[String],
    base: Base,
    (scale, seed): (Scale, u64),
) -> Result<Contents, Failure> {
    place.forget(&[name.to_owned()]);
    let image = place.at("new.raw");
    let file = File::create(&image).and_then(|file| file.set_len(scale.device_bytes()));
    file.map_err(|e| Failure::file(&image, &e))?;
    let made = make_in(place, name, mkfs, base, (scale, seed), image.as_os_str());
    let _ = fs::remove_file(&image);
    made
}

fn make_in(
    place: &Place,
    name: &str,
    mkfs: &[String],
    base: Base,
    (scale, seed): (Scale, u64),
    image: &OsStr,
) -> Result<Contents, Failure> {
    let fresh = format!("{name}-fresh");
    let import = |as_name: &str| {
        let args = ["import", "--quiet", "--replace", "--format", "raw"].map(OsStr::new);
        place.run(&[&args[..], &[image, as_name.as_ref()]].concat())
    };
    match base {
        Base::FreshFile => {
            make_fs(mkfs, image)?;
            import(name)?;
            Ok(Contents::default())
        }
        Base::FreshDevice => {
            import(&fresh)?;
            let bench = Bench::attach(place, &fresh, name)?;
            make_fs(mkfs, bench.device.as_os_str())?;
            bench.snapshot(name)?;
            bench.end()?;
            place.forget(&[fresh]);
            Ok(Contents::default())
        }
        Base::Aged => {
            make_fs(mkfs, image)?;
            import(&fresh)?;
            let mut bench = Bench::attach(place, &fresh, name)?;
            let root = bench.mount(AGED_WITH)?;
            let failed = |e: std::io::Error| Failure::failed(format!("filling a template: {e}"));
            tree::grow(&mut Hand::new(&root, seed), scale).map_err(failed)?;
            let contents = Contents::read(&root).map_err(failed)?;
            bench.quiesce(&[], None)?;
            bench.unmount()?;
            bench.snapshot(name)?;
            bench.end()?;
            place.forget(&[fresh]);
            Ok(contents)
        }
    }
}

fn make_fs(mkfs: &[String], on: &OsStr) -> Result<(), Failure> {
    let mut args: Vec<&OsStr> = vec!["-q".as_ref(), "-F".as_ref()];
    args.extend(mkfs.iter().map(OsStr::new));
    args.push(on);
    programs::run("mkfs.ext4", &args).map(drop)
}
