//! The known word nearest to a mistyped one.
//!
//! Trust: the mistyped word is the administrator's, candidates are ours; it only makes a hint.

/// The candidate that is one or two slips (a third of its length at most) away from `word`, the nearest first.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let allowed = (word.chars().count() / 3).clamp(1, 3);
    candidates
        .into_iter()
        .map(|candidate| (slips(&word.to_lowercase(), &candidate.to_lowercase()), candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Insertions, deletions, replacements and swaps of neighbours between two words.
fn slips(a: &str, b: &str) -> usize {
    // A key nobody would type must not cost quadratic time.
    let a: Vec<char> = a.chars().take(64).collect();
    let b: Vec<char> = b.chars().take(64).collect();
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    let at = |row: &[usize], i: usize| row.get(i).copied().unwrap_or(usize::MAX / 2);
    for (i, ca) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, cb) in b.iter().enumerate() {
            let mut cost =
                (at(&last, j) + usize::from(ca != cb)).min(at(&last, j + 1) + 1).min(at(&row, j) + 1);
            if i > 0 && j > 0 && a.get(i - 1) == Some(cb) && b.get(j - 1) == Some(ca) {
                cost = cost.min(at(&before, j - 1) + 1);
            }
            row.push(cost);
        }
        before = std::mem::replace(&mut last, row);
    }
    at(&last, b.len())
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn finds_slips_and_only_those() {
        let keys = ["listener", "hostname", "state_dir", "timeout", "tls", "log"];
        for (typed, expected) in [
            ("listner", Some("listener")),
            ("Hostname", Some("hostname")),
            ("hsotname", Some("hostname")),
            ("statedir", Some("state_dir")),
            ("time_out", Some("timeout")),
            ("tsl", Some("tls")),
            ("colour", None),
            ("", None),
        ] {
            assert_eq!(nearest(typed, keys), expected, "{typed}");
        }
        assert_eq!(nearest(&"x".repeat(100_000), keys), None);
    }
}
