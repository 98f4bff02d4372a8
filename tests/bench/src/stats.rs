//! Medians, percentiles, slopes.
//!
//! Trust: nobody sends it bytes.
//! Never: panic on no values at all; then there is no number.

/// The middle one; of an even number, the mean of the two in the middle.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let half = sorted.len() / 2;
    match (sorted.get(half), sorted.len() % 2) {
        (None, _) => f64::NAN,
        (Some(middle), 1) => *middle,
        (Some(upper), _) => (sorted.get(half - 1).unwrap_or(upper) + upper) / 2.0,
    }
}

/// The value that this share of all values does not exceed. Sorts.
pub(crate) fn percentile(values: &mut [u32], share: f64) -> f64 {
    values.sort_unstable();
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    let at = ((values.len() as f64 * share).ceil() as usize).saturating_sub(1);
    values.get(at).map_or(f64::NAN, |value| f64::from(*value))
}

/// The exponent b of y = a·x^b that fits best (least squares over logarithms).
pub(crate) fn exponent(points: &[(f64, f64)]) -> f64 {
    let logs: Vec<(f64, f64)> =
        points.iter().filter(|(x, y)| *x > 0.0 && *y > 0.0).map(|(x, y)| (x.ln(), y.ln())).collect();
    #[allow(clippy::cast_precision_loss)]
    let count = logs.len() as f64;
    let mean = |f: fn(&(f64, f64)) -> f64| logs.iter().map(f).sum::<f64>() / count;
    let (mx, my) = (mean(|p| p.0), mean(|p| p.1));
    let above: f64 = logs.iter().map(|(x, y)| (x - mx) * (y - my)).sum();
    let below: f64 = logs.iter().map(|(x, _)| (x - mx).powi(2)).sum();
    above / below
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn middle_and_tail() {
        assert_eq!(median(&[3.0, 1.0, 2.0]).total_cmp(&2.0), std::cmp::Ordering::Equal);
        assert_eq!(median(&[4.0, 1.0]).total_cmp(&2.5), std::cmp::Ordering::Equal);
        let mut values: Vec<u32> = (1..=100).collect();
        assert_eq!(percentile(&mut values, 0.99).total_cmp(&99.0), std::cmp::Ordering::Equal);
        assert_eq!(percentile(&mut values, 0.5).total_cmp(&50.0), std::cmp::Ordering::Equal);
    }

    #[test]
    fn slope_of_a_power() {
        let square: Vec<(f64, f64)> = (1..9).map(|x| (f64::from(x), 3.0 * f64::from(x * x))).collect();
        assert!((exponent(&square) - 2.0).abs() < 1e-9);
        let flat: Vec<(f64, f64)> = (1..9).map(|x| (f64::from(x), 7.0)).collect();
        assert!(exponent(&flat).abs() < 1e-9);
    }
}
