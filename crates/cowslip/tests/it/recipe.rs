//! Pages of docs/ that are run as they stand: their blocks for sh(1), in order.

/// The blocks of a page. Whoever runs them takes them apart into as many as there are, so that none is forgotten.
pub(crate) fn blocks(page: &str) -> Vec<&str> {
    page.split("```sh\n")
        .skip(1)
        .map(|rest| rest.split_once("```").unwrap().0)
        .collect()
}
