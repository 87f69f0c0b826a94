//! What was removed, and is open still.
//!
//! A collection, of this process or of another, removes the names of objects; their room on disk is free
//! when nobody has them open any more. A server would keep them open for as long as its caches of open
//! files are not full: some hundred layers, each perhaps as large as the disk that it serves.

use std::io;
use std::sync::Arc;

use cowslip_block::files::{Access, Dir};

use super::Store;

impl Store {
    /// Closes the objects that are not there any more. Whoever reads from one goes on.
    pub(crate) fn let_go_of_removed(&self) {
        self.open_layers
            .retain(|id, _| is_there(&self.layers, &id.to_string()));
        self.nodes
            .retain(|id| is_there(&self.headers, &id.to_string()));
    }
}

/// What cannot be looked for is kept.
fn is_there(dir: &Arc<dyn Dir>, name: &str) -> bool {
    let found = dir.open(name, Access::Read);
    !matches!(found, Err(e) if e.kind() == io::ErrorKind::NotFound)
}
