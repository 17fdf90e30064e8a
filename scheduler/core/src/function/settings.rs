//! Which settings hold: as deployed, with profiles over them at their times, and what an operator has set over all.

use super::Function;
use crate::{effect::Output, record::Record};
use capstan_common::{
    function::{Overrides, OverridesPatch},
    parameter,
    profile::{self, Profile},
    refusal::Refusal,
    validate::{self, Source},
};

impl Function {
    /// The settings that hold: as deployed, then the profiles of this time, then what an operator has set.
    pub(super) fn settle_settings(&mut self) {
        let spec = &self.deployed.spec;
        let profiles = self.sizing.profiles.active().map(|n| &spec.profiles[n].autoscaler);
        let settings = profiles.fold(spec.autoscaler.clone(), |settings, profile| profile.over(&settings));
        self.effective = self.overrides.over(&settings);
        // An override was checked against what held when it was made; a profile never lifts the minimum over the maximum.
        // The system's cap holds for everybody, and is shown (SPEC D1).
        let system = self.limits.system_max_containers;
        let max = self.effective.max_containers.unwrap_or(system).min(system);
        self.effective.max_containers = Some(max);
        self.effective.min_containers = self.effective.min_containers.min(max);
    }

    /// Names of the profiles that hold.
    pub fn active_profiles(&self) -> Vec<&str> {
        self.sizing.profiles.active().map(|n| self.deployed.spec.profiles[n].name.as_str()).collect()
    }

    /// What of the operator's settings will not hold in full while a profile does.
    pub fn overruled(&self) -> Vec<String> {
        profile::overruled(&self.deployed.spec, &self.overrides)
    }

    /// The dynamic settings as a patch would leave them, if it may be: those of the function, or of an instance of it that is
    /// still to be made.
    pub fn patched(&self, patch: &OverridesPatch, of_new_instance: bool) -> Result<Overrides, Refusal> {
        self.must_exist()?;
        let spec = &self.deployed.spec;
        if !of_new_instance {
            parameter::missing(spec)?;
        }
        let before = if of_new_instance { Overrides::default() } else { self.overrides.clone() };
        let overrides = patch.apply(&before);
        let active: Vec<&Profile> = self.sizing.profiles.active().map(|n| &spec.profiles[n]).collect();
        let settings = active.iter().fold(spec.autoscaler.clone(), |settings, p| p.autoscaler.over(&settings));
        let source = |field: &str| {
            let said = match active.iter().rev().find(|profile| profile.autoscaler.sets(field)) {
                _ if overrides.sets(field) => ", overridden".into(),
                Some(profile) => format!(", by profile `{}`", profile.name),
                None => ", as deployed".into(),
            };
            if patch.names(field) { Source::written(&said) } else { Source::elsewhere(said) }
        };
        let settings = overrides.over(&settings);
        validate::settings(&settings, &source)?;
        validate::within_system(&settings, "", self.limits.system_max_containers)?;
        Ok(overrides)
    }

    pub(super) fn patch(&mut self, patch: &OverridesPatch, out: &mut Output) -> Result<(), Refusal> {
        let overrides = self.patched(patch, false)?;
        self.overrides = overrides.clone();
        self.settle_settings();
        out.records.push(Record::Overridden(overrides));
        out.urgent = true;
        Ok(())
    }
}
