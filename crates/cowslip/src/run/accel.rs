//! What runs a guest's instructions: KVM, or QEMU itself (TCG), some 20 times slower.
//!
//! A `/dev/kvm` that can be opened says little: in a nested machine QEMU may abort, or the kernel may hang. So `auto` boots with KVM, and once more
//! with TCG where no word comes from the guest. Until that word the guest touches no disk: nothing is done twice.

use std::fs::File;
use std::time::Duration;

use crate::args::Accel;

/// A kernel under a KVM that works says its first word within a second or two.
const FIRST_WORD_WITHIN: Duration = Duration::from_secs(30);

/// One way, and why it is taken.
#[derive(Clone, Debug)]
pub(crate) struct Choice {
    pub(crate) is_kvm: bool,
    pub(crate) why: String,
    /// Whether there is another after it, which is taken where nothing is heard for so long.
    pub(crate) first_word_within: Option<Duration>,
}

impl Choice {
    pub(crate) fn name(&self) -> &'static str {
        if self.is_kvm { "kvm" } else { "tcg" }
    }
}

/// The ways to try, in order.
pub(crate) fn choices(wanted: Accel) -> Vec<Choice> {
    let way = |is_kvm, why: &str| Choice {
        is_kvm,
        why: why.to_owned(),
        first_word_within: None,
    };
    match wanted {
        Accel::Kvm => vec![way(true, "--accel")],
        Accel::Tcg => vec![way(false, "--accel")],
        Accel::Auto => match File::options().read(true).write(true).open("/dev/kvm") {
            Ok(_) => vec![
                Choice {
                    first_word_within: Some(FIRST_WORD_WITHIN),
                    ..way(true, "it works")
                },
                way(false, "KVM does not work here"),
            ],
            Err(error) => vec![way(false, &format!("/dev/kvm: {error}"))],
        },
    }
}
