//! Who has been served how much: the virtual token counters of Sheng et al. 2024, "Fairness in Serving Large Language
//! Models", with a bound for every step.
//!
//! A counter grows by the tokens computed for its tenant. The floor is the least counter among the tenants that have
//! work left undone; everybody else is lifted to it, so nobody saves up a claim while asking for nothing. When nobody has
//! work left undone, nobody owes anybody anything and all begin anew.
//!
//! A tenant is served no further than `slack` past the floor. So the counters of two tenants that both have work left
//! undone are never further apart than that, and what they are served over any time differs by at most twice as much.

use std::collections::{BTreeMap, BTreeSet};

use crate::request::TenantId;

/// What each tenant was served while others waited.
#[derive(Debug, Default)]
pub struct Fairness {
    /// Tokens served; tenants without an entry are at the floor.
    served: BTreeMap<TenantId, u64>,
    floor: u64,
    slack: u64,
}

impl Fairness {
    /// Before a step: who has work left undone, and how far anybody may be ahead of them.
    pub fn level(&mut self, undone: &BTreeSet<TenantId>, slack: u64) {
        self.slack = slack;
        match undone.iter().map(|tenant| self.served(*tenant)).min() {
            Some(least) => {
                self.floor = least;
                self.served.retain(|_, served| *served > least);
            }
            None => (self.served, self.floor) = (BTreeMap::new(), 0),
        }
    }

    /// Tokens that the tenant was served, as far as they count.
    pub fn served(&self, tenant: TenantId) -> u64 {
        self.served.get(&tenant).copied().unwrap_or(self.floor)
    }

    /// Tokens that the tenant may still be served in this step.
    pub(super) fn allowance(&self, tenant: TenantId) -> u64 {
        (self.floor + self.slack).saturating_sub(self.served(tenant))
    }

    /// Tokens are computed for the tenant.
    pub fn charge(&mut self, tenant: TenantId, tokens: u64) {
        let served = self.served(tenant) + tokens;
        self.served.insert(tenant, served);
    }

    /// What was charged turned out not to be served.
    pub(super) fn refund(&mut self, tenant: TenantId, tokens: u64) {
        let served = self.served(tenant).saturating_sub(tokens);
        self.served.insert(tenant, served.max(self.floor));
    }
}
