//! What one target may lose when all targets of a host share a budget.

use super::Share;

/// The share that each target may lose so that all together lose at most `host`.
///
/// `demands` is what each target would lose were it heard all the time; none gets more than `most`. Those that want
/// little get it, and have room to want more; those that want much share the rest evenly.
#[must_use]
pub fn even_share(host: Share, most: Share, demands: &[Share]) -> Share {
    let mut sorted: Vec<f64> = (demands.iter())
        .map(|demand| demand.0.max(0.0).min(most.0))
        .collect();
    sorted.sort_by(f64::total_cmp);
    let mut left = host.0.max(0.0);
    let mut others = sorted.len();
    for demand in sorted {
        let even = left / others as f64;
        if demand > even {
            return Share(even);
        }
        left -= demand;
        others -= 1;
    }
    most
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn those_that_want_little_leave_the_rest_to_the_others() {
        let shares = |demands: &[f64]| -> f64 {
            let demands: Vec<_> = demands.iter().copied().map(Share).collect();
            even_share(Share(0.05), Share(0.01), &demands).0
        };
        assert_eq!(shares(&[]), 0.01);
        assert_eq!(shares(&[0.9; 3]), 0.01);
        assert_eq!(shares(&[0.9; 10]), 0.005);
        let twenty: Vec<f64> = [0.0; 15].into_iter().chain([0.9; 10]).collect();
        assert_eq!(shares(&twenty), 0.005);
        let some: Vec<f64> = [0.001; 10].into_iter().chain([2.0; 8]).collect();
        assert!((shares(&some) - 0.005).abs() < 1e-12);
    }

    proptest! {
        #[test]
        fn all_together_stay_within_the_hosts_budget(
            host in 0.0..1.0f64,
            most in 0.0..0.1f64,
            demands in prop::collection::vec(0.0..4.0f64, 0..300),
        ) {
            let demands: Vec<Share> = demands.into_iter().map(Share).collect();
            let share = even_share(Share(host), Share(most), &demands);
            prop_assert!(share.0 <= most + 1e-12);
            let spent: f64 = demands.iter().map(|demand| demand.0.min(share.0)).sum();
            prop_assert!(spent <= host + 1e-9, "{spent} of {host}");
            // Nothing is left over while somebody wants more.
            let wants_more = demands.iter().any(|demand| demand.0.min(most) > share.0);
            prop_assert!(!wants_more || spent >= host - 1e-9);
        }
    }
}
