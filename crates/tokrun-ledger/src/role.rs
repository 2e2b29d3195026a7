//! Who may do what: the policy alone. Who somebody is, and what of it is theirs, is known elsewhere.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

/// What somebody is to a ledger that a service keeps. Whoever owns the file is its admin, and needs no role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Has a wallet: spends it, sees it, gives of it, and asks for more.
    Member,
    /// Sees everything and changes nothing.
    Auditor,
    /// Gives allowances, pays back, sets prices, and reads the books.
    Finance,
    /// Does all there is to do.
    Admin,
}

/// What somebody may want to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Run a request that a wallet pays.
    Spend,
    /// See a wallet: its balance, statement, usage, limits and keys.
    Read,
    /// Ask for an allowance for a wallet.
    Ask,
    /// Transfer or delegate what a wallet has, and take a delegation back.
    Give,
    /// Grant to a wallet, void and correct its grants, refund its requests, answer what it asks for.
    Fund,
    /// Create a wallet; change, limit, freeze or close it.
    Manage,
    /// Set prices.
    Price,
    /// Export, verify and anchor the books.
    Audit,
    /// Create a key of a wallet, with any role.
    IssueKey,
    /// Create a key of a wallet that reaches no farther than the one that is there.
    CopyKey,
    /// Rotate or revoke a key of a wallet.
    RenewKey,
    /// Run the service: its models, its settings, its backups.
    Operate,
}

impl Role {
    /// All of them.
    pub const ALL: [Role; 4] = [Role::Member, Role::Auditor, Role::Finance, Role::Admin];

    /// Whether somebody of this role may. `own`: the wallet that it is about is theirs, or one whose pool theirs draws
    /// on; an action that is about no wallet is not about theirs.
    ///
    /// Nobody spends what is another's, and nobody raises their own allowance, not even an admin: another one does, or
    /// the owner of the file.
    pub const fn may(self, action: Action, own: bool) -> bool {
        let acts = !matches!(self, Role::Auditor);
        match action {
            Action::Spend | Action::Ask => own && acts,
            Action::Read => own || !matches!(self, Role::Member),
            Action::Give | Action::CopyKey | Action::RenewKey => own && acts || matches!(self, Role::Admin),
            Action::Fund => !own && matches!(self, Role::Finance | Role::Admin),
            Action::Manage => !own && matches!(self, Role::Admin),
            Action::Price => matches!(self, Role::Finance | Role::Admin),
            Action::Audit => !matches!(self, Role::Member),
            Action::IssueKey | Action::Operate => matches!(self, Role::Admin),
        }
    }

    /// The name used in the file, on the command line and in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Role::Member => "member",
            Role::Auditor => "auditor",
            Role::Finance => "finance",
            Role::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(name: &str) -> Result<Role, String> {
        let known = Role::ALL.into_iter().find(|role| role.as_str() == name);
        known.ok_or_else(|| format!("`{name}` is no role: member, auditor, finance or admin"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Action; 12] = [
        Action::Spend,
        Action::Read,
        Action::Ask,
        Action::Give,
        Action::Fund,
        Action::Manage,
        Action::Price,
        Action::Audit,
        Action::IssueKey,
        Action::CopyKey,
        Action::RenewKey,
        Action::Operate,
    ];

    fn allowed(role: Role, own: bool) -> Vec<Action> {
        ALL.into_iter().filter(|&action| role.may(action, own)).collect()
    }

    #[test]
    fn everybody_may_what_their_role_says_and_no_more() {
        use Action::{Ask, Audit, CopyKey, Fund, Give, IssueKey, Manage, Operate, Price, Read, RenewKey, Spend};
        assert_eq!(allowed(Role::Member, true), [Spend, Read, Ask, Give, CopyKey, RenewKey]);
        assert_eq!(allowed(Role::Member, false), []);
        assert_eq!(allowed(Role::Auditor, true), [Read, Audit]);
        assert_eq!(allowed(Role::Auditor, false), [Read, Audit]);
        assert_eq!(allowed(Role::Finance, true), [Spend, Read, Ask, Give, Price, Audit, CopyKey, RenewKey]);
        assert_eq!(allowed(Role::Finance, false), [Read, Fund, Price, Audit]);
        let all = [Read, Give, Fund, Manage, Price, Audit, IssueKey, CopyKey, RenewKey, Operate];
        assert_eq!(allowed(Role::Admin, false), all);
    }

    #[test]
    fn nobody_raises_their_own_allowance() {
        for role in Role::ALL {
            assert!(!role.may(Action::Fund, true) && !role.may(Action::Manage, true), "{role}");
            assert_eq!(role.as_str().parse(), Ok(role));
        }
        assert!("root".parse::<Role>().is_err());
    }
}
