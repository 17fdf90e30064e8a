//! API tokens: made, listed, revoked.

use super::{Api, owner::Owner};
use crate::{
    access::{Token, Tokens},
    clock,
    cluster::Peer,
    function_token::Claim,
    store::{Change, layout, store_refusal, stored},
};
use capstan_common::{
    refusal::{Code, Refusal},
    validate,
};
use capstan_verb::{
    access::{Role, Subject},
    token::{Make, TokenView},
};
use std::time::{Duration, Instant};

/// The least pause between two looks for tokens that are not known.
const LOOK: Duration = Duration::from_millis(20);
/// The longest name of a token.
const NAME_MAX: usize = 128;

/// Whether a container lives, as far as a scheduler knows.
pub enum Standing {
    /// It does.
    Lives,
    /// It does no more, or never did.
    Ended,
    /// This other scheduler knows.
    Elsewhere(Peer),
    /// Its function's owner is being replaced, or has not heard of all workers yet.
    Unknown,
}

fn view(token: &Token) -> TokenView {
    TokenView {
        id: token.id.clone(),
        name: token.name.clone(),
        role: token.subject.role,
        namespaces: token.subject.namespaces.clone(),
        created_at: clock::rfc3339(token.created),
        token: None,
    }
}

impl Api {
    /// Whose token this is.
    pub fn bearer(&self, token: &str) -> Option<Token> {
        self.env.tokens.find(token)
    }

    /// What a function's token says, if we signed it; whether it still opens anything is asked with [`Self::standing`].
    pub fn claim(&self, token: &str) -> Option<Claim> {
        self.env.function_tokens.read(token)
    }

    /// What shows another scheduler that it is one that asks.
    pub fn scheduler_token(&self) -> String {
        self.env.function_tokens.sign_for_schedulers(clock::now())
    }

    /// What another scheduler may ask that shows this.
    pub fn scheduler_subject(&self, token: &str) -> Option<Subject> {
        self.env.function_tokens.read_scheduler(token, clock::now())
    }

    /// Where the container of a function's token stands. Only its owner can say.
    pub async fn standing(&self, claim: &Claim) -> Standing {
        let _guest = match self.owner(claim.place).await {
            Owner::Here(guest) => guest,
            Owner::There(peer) => return Standing::Elsewhere(peer),
            Owner::Nobody => return Standing::Unknown,
        };
        if let Some((function, _)) = self.env.registry.owner(claim.container) {
            return if claim.subject.sees(&function.namespace) { Standing::Lives } else { Standing::Ended };
        }
        let awaits = self.home(claim.place).is_ok_and(|env| env.awaits_workers());
        if awaits { Standing::Unknown } else { Standing::Ended }
    }

    /// Whether tokens were made.
    pub fn has_tokens(&self) -> bool {
        !self.env.tokens.is_empty()
    }

    /// All tokens, without what they are.
    pub fn tokens(&self) -> Vec<TokenView> {
        self.env.tokens.all().iter().map(view).collect()
    }

    /// Makes a token. What it is is told here and never again.
    pub async fn make_token(&self, wanted: Make) -> Result<TokenView, Refusal> {
        if wanted.name.len() > NAME_MAX {
            return Err(Refusal::field(
                "name",
                format!("must have at most {NAME_MAX} bytes, has {}", wanted.name.len()),
            ));
        }
        for namespace in wanted.namespaces.iter().flatten() {
            validate::function_key(namespace, "any")
                .map_err(|_| Refusal::field("namespaces", format!("`{namespace}` is not the name of a namespace")))?;
        }
        if wanted.namespaces.as_ref().is_some_and(Vec::is_empty) {
            return Err(Refusal::field("namespaces", "must name at least one; leave it out for all".to_owned()));
        }
        let governs = wanted.role == Role::Admin && wanted.namespaces.is_none();
        if !governs && !self.is_governed_without("") {
            let detail = "must be admin, everywhere, for the first token: from then on every request needs a token, and with this one alone nobody could govern; or set scheduler.tokens";
            return Err(Refusal::field("role", detail.to_owned()));
        }
        self.must_have_room_anywhere()?;
        let namespaces = wanted.namespaces.map(|names| names.iter().map(|name| name.as_str().into()).collect());
        let (text, token, change) = Tokens::mint(wanted.name, Subject { role: wanted.role, namespaces });
        self.env.globals.write(vec![change]).await.map_err(store_refusal)?;
        let made = TokenView { token: Some(text), ..view(&token) };
        self.env.tokens.add(token);
        Ok(made)
    }

    /// Whether somebody may do everything without this token.
    fn is_governed_without(&self, id: &str) -> bool {
        let governs = |token: &Token| token.subject == Subject::admin() && &*token.id != id;
        !self.config.tokens.is_empty() || self.env.tokens.all().iter().any(governs)
    }

    /// Revokes a token.
    pub async fn revoke_token(&self, id: &str) -> Result<(), Refusal> {
        if !self.env.tokens.all().iter().any(|token| &*token.id == id) {
            return Err(Refusal::new(Code::NotFound, format!("token `{id}` does not exist")));
        }
        if self.env.tokens.all().len() > 1 && !self.is_governed_without(id) {
            let detail =
                "it is the last token that may govern, and others are in use: revoke those first, or make another one";
            return Err(Refusal::new(Code::Conflict, detail));
        }
        let revoked = Change::Put(layout::REVOKED.into(), stored::encode(&clock::now()));
        self.env.globals.write(vec![Change::Delete(layout::token(id)), revoked]).await.map_err(store_refusal)?;
        self.env.tokens.revoke(id);
        Ok(())
    }

    /// Looks whether another scheduler has made a token that is not known here; requests that ask at the same time share a look, so
    /// that strangers' guesses do not make it look all the time. Whether it was looked.
    pub async fn look_for_tokens(&self) -> bool {
        if !self.is_clustered() {
            return false;
        }
        let asked = Instant::now();
        let mut looked = self.looked.lock().await;
        if let Some(at) = *looked {
            if at > asked {
                return true;
            }
            tokio::time::sleep(LOOK.saturating_sub(at.elapsed())).await;
        }
        let begun = Instant::now();
        self.adopt_tokens().await;
        *looked = Some(begun);
        true
    }

    /// What other schedulers have made and revoked holds here too.
    pub async fn adopt_tokens(&self) {
        self.adopt_secrets().await;
        if let Ok(stored) = self.env.globals.tokens().await {
            let _ = self.env.tokens.hold(stored);
        }
    }
}
