//! A figure over a long history: medians, their spread, a line of little bars.

/// The middle one; 0 where there is none.
pub(super) fn median(of: &[f64]) -> f64 {
    quantile(of, 0.5)
}

/// The value that so large a part of all is not above.
pub(super) fn quantile(of: &[f64], part: f64) -> f64 {
    let mut sorted = of.to_vec();
    sorted.sort_by(f64::total_cmp);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a place in a list"
    )]
    let at = (part * sorted.len() as f64) as usize;
    sorted
        .get(at.min(sorted.len().saturating_sub(1)))
        .copied()
        .unwrap_or(0.0)
}

/// The first, the middle and the last tenth of a history.
pub(super) fn tenths(of: &[f64]) -> [&[f64]; 3] {
    let len = (of.len() / 10).max(1).min(of.len());
    let middle = (of.len() - len) / 2;
    [&of[..len], &of[middle..middle + len], &of[of.len() - len..]]
}

/// Medians of equal parts of the history, as bars over a base line of zero.
pub(super) fn sparkline(of: &[f64]) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let medians: Vec<f64> = of
        .chunks(of.len().div_ceil(50).max(1))
        .map(median)
        .collect();
    let most = medians.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a place in a list"
    )]
    let bar = |value: &f64| BARS[((value / most * 7.0).round() as usize).min(7)];
    medians.iter().map(bar).collect()
}

#[test]
fn a_flat_curve_is_a_flat_line() {
    assert_eq!(sparkline(&[3.0; 50]), "█".repeat(50));
    let rising: Vec<f64> = (0..100).map(f64::from).collect();
    assert!(sparkline(&rising).starts_with('▁') && sparkline(&rising).ends_with('█'));
    let [first, middle, last] = tenths(&rising).map(median);
    assert_eq!((first, middle, last), (5.0, 50.0, 95.0));
    assert_eq!((median(&[]), quantile(&[1.0, 2.0, 9.0], 1.0)), (0.0, 9.0));
}
