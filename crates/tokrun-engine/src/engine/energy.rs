//! What of a device's energy went into which request.
//!
//! A step's energy is split over its requests by the tokens that it computed for them. It reaches from the end of the step
//! before, so that planning and sampling are in it; what the device uses while there is nothing to compute is nobody's.

/// Cuts what a device has used in all into steps.
#[derive(Debug, Default)]
pub(super) struct Steps {
    /// At the end of the step before, or of idling.
    counted_uj: Option<u64>,
}

/// What went into one request, µJ.
#[derive(Debug, Default)]
pub(super) struct Share(f64);

impl Steps {
    /// The device idled until now.
    pub(super) fn idled(&mut self, total_uj: Option<u64>) {
        self.counted_uj = total_uj;
    }

    /// A step ends now: what it used.
    pub(super) fn step(&mut self, total_uj: Option<u64>) -> Option<u64> {
        let before = std::mem::replace(&mut self.counted_uj, total_uj);
        Some(total_uj?.saturating_sub(before?))
    }
}

impl Share {
    /// Adds the part for `tokens` of the `all_tokens` of a step.
    pub(super) fn add(&mut self, step_uj: u64, tokens: usize, all_tokens: usize) {
        self.0 += step_uj as f64 * tokens as f64 / all_tokens as f64;
    }

    /// Whole microjoules since the last call; what is left over goes into the next one.
    pub(super) fn take(&mut self) -> Option<u64> {
        let whole = self.0.floor();
        self.0 -= whole;
        (whole > 0.0).then_some(whole as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_begins_where_the_last_one_ended() {
        let mut steps = Steps::default();
        steps.idled(Some(100));
        assert_eq!((steps.step(Some(130)), steps.step(Some(135))), (Some(30), Some(5)));
        steps.idled(Some(1000));
        assert_eq!(steps.step(Some(1001)), Some(1));
        assert_eq!((steps.step(None), steps.step(Some(7)), steps.step(Some(9))), (None, None, Some(2)));
    }

    #[test]
    fn shares_add_up_to_what_was_used() {
        let mut shares = [Share::default(), Share::default(), Share::default()];
        let mut taken = [0; 3];
        for _ in 0..30 {
            for (index, share) in shares.iter_mut().enumerate() {
                share.add(100, [1, 1, 5][index], 7);
                taken[index] += share.take().unwrap_or(0);
            }
        }
        assert_eq!(taken, [428, 428, 2142]);
        assert_eq!(Share::default().take(), None);
    }
}
