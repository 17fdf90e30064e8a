//! The rights: for each verb the role that it needs, whose rights count, who answers, and whether it may be asked again when its
//! answer was lost. What is not in this table is not served.

use crate::{At, Done, Repeat, Scope, Verb, access::Role, payload::Input};

/// Hands the table to a macro, which gets a name for the verb's value and then, for each verb,
/// `Verb => role, scope, who answers, when the answer is lost -> answer;`. The second group brings inputs, the third makes one answer
/// of those of all schedulers.
#[macro_export]
macro_rules! all_verbs {
    ($make:ident) => {
        $make! { v;
            function::Get       => Read, In(&v.key.namespace),   Owner(v.key.place()),   Safe -> function::FunctionView;
            function::Settings  => Read, In(&v.key.namespace),   Owner(v.key.place()),   Safe -> function::SettingsView;
            function::GetStats  => Read, In(&v.key.namespace),   Owner(v.key.place()),   Safe -> capstan_common::stats::Stats;
            function::Explain   => Read, In(&v.key.namespace),   Owner(v.key.place()),   Safe -> function::ExplainView;
            function::Instances => Read, In(&v.key.namespace),   Owner(v.key.place()),   Safe -> function::InstancesView;
            function::Scaling   => Read, In(&v.key.namespace),   Owner(v.key.place()),   Safe -> function::ScalingView;
            function::AwaitActive => Read, In(&v.key.namespace), Owner(v.key.place()),   Safe -> function::ActiveView;
            function::AwaitDeployed => Read, In(&v.key.namespace), Owner(v.key.place()), Safe -> function::RolloutView;
            function::RequiredNodes => Read, In(&v.key.namespace), Owner(v.key.place()), Safe -> cluster::NodesView;
            function::Schedule  => Read, In(&v.key.namespace),   Owner(v.key.place()),   Safe -> function::ScheduleView;
            function::Deploy    => Deploy, In(&v.key.namespace), Owner(v.key.place()),   Once -> function::DeployedView;
            function::Revisions => Read, In(&v.key.namespace),   Owner(v.key.place()),   Safe -> function::RevisionsView;
            function::Rollback  => Deploy, In(&v.key.namespace), Owner(v.key.place()),   Once -> function::DeployedView;
            function::Check     => Deploy, In(&v.key.namespace), Owner(v.key.place()),   Safe -> function::CheckedView;
            function::Patch     => Deploy, In(&v.key.namespace), Owner(v.key.place()),   Safe -> function::SettingsView;
            function::Remove    => Deploy, In(&v.key.namespace), Owner(v.key.place()),   Once -> Done;
            function::PauseSchedule => Deploy, In(&v.key.namespace), Owner(v.key.place()), Safe -> function::ScheduleView;
            function::RunSchedule => Deploy, In(&v.key.namespace), Owner(v.key.place()), Once -> call::SpawnedView;
            call::Get           => Read, OfRecord,               Owner(v.call.place()),  Safe -> call::CallView;
            call::ExplainInput  => Read, OfRecord,               Owner(v.call.place()),  Safe -> call::InputLife;
            call::Cancel        => Invoke, OfRecord,             Owner(v.call.place()),  Safe -> call::CallView;
            function::Logs      => Read, In(&v.key.namespace),   Owner(v.key.place()),   Safe -> log::LogsView;
            container::Logs     => Read, OfRecord,               Whoever,                Safe -> log::LogsView;
            container::Stop     => Deploy, OfRecord,             Whoever,                Safe -> container::StoppingView;
            cluster::RequiredNodes => Read, Cluster,             Here,                   Safe -> cluster::NodesView;
            model::Serving      => Read, In(&v.namespace),       Whoever,                Safe -> model::ServingView;
            cluster::Version    => Read, List,                   Here,                   Safe -> cluster::VersionView;
            call::Inputs        => Read, OfRecord,               Owner(v.call.place()),  Safe -> call::InputsView;
            call::Summarize     => Read, OfRecord,               Owner(v.call.place()),  Safe -> call::SummaryView;
            cluster::Schedulers => Read, Cluster,                Here,                   Safe -> cluster::SchedulersView;
            namespace::Get      => Read, In(&v.namespace),       Here,                   Safe -> namespace::NamespaceView;
            namespace::List     => Read, List,                   Here,                   Safe -> namespace::NamespacesView;
            namespace::Set      => Admin, Cluster,               Here,                   Safe -> namespace::NamespaceView;
            cluster::RevokeWorker => Admin, Cluster,             Here,                   Safe -> cluster::RevokedView;
            cluster::Invite     => Admin, Cluster,               Here,                   Once -> cluster::InvitationView;
            model::ScaleToZero  => Read, Cluster,                Here,                   Safe -> model::ScaleToZeroView;
            model::SetScaleToZero => Admin, Cluster,             Here,                   Safe -> model::ScaleToZeroView;
            model::Effective    => Read, Cluster,                Here,                   Safe -> model::EffectiveView;
            token::List         => Admin, Cluster,               Here,                   Safe -> token::TokensView;
            token::Make         => Admin, Cluster,               Here,                   Once -> token::TokenView;
            token::Revoke       => Admin, Cluster,               Here,                   Safe -> Done;
            secret::List        => Read, In(&v.namespace),       Here,                   Safe -> secret::SecretsView;
            secret::Set         => Deploy, In(&v.namespace),     Here,                   Safe -> secret::SetView;
            secret::Remove      => Deploy, In(&v.namespace),     Here,                   Safe -> Done;
            function::Trace     => Read, In(&v.key.namespace),   Owner(v.key.place()),   Safe -> function::TraceView;
            call::Results       => Read, OfRecord,               Owner(v.call.place()),  Safe -> call::ResultsView;
            ;
            call::Invoke        => Invoke, In(&v.key.namespace), Owner(v.key.place()),   Once -> call::EndedView;
            call::Spawn         => Invoke, In(&v.key.namespace), Owner(v.key.place()),   Once -> call::SpawnedView;
            ;
            cluster::TurnWorker => Admin, Cluster,               All,                    Safe -> Done;
            secret::Users       => Deploy, In(&v.namespace),     All,                    Safe -> secret::UsersView;
            function::List      => Read, In(&v.namespace),       All,                    Safe -> function::FunctionsView;
            call::List          => Read, List,                   All,                    Safe -> call::CallsView;
            container::List     => Read, List,                   All,                    Safe -> container::ContainersView;
            cluster::Workers    => Read, Cluster,                All,                    Safe -> cluster::WorkersView;
            cluster::Worker     => Read, Cluster,                All,                    Safe -> cluster::WorkerView;
            model::Query        => Read, Cluster,                All,                    Safe -> model::Vector;
            model::Gauges       => Read, In(&v.namespace),       All,                    Safe -> model::GaugesView;
        }
    };
}

/// What the table says of a verb, for those who read it: documents, doors, tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rights {
    /// The verb's name.
    pub verb: &'static str,
    /// The role that it needs.
    pub role: Role,
    /// Whose rights count: `In`, `OfRecord`, `List` or `Cluster`.
    pub scope: &'static str,
    /// Whether it may be asked again.
    pub repeat: Repeat,
}

macro_rules! implement {
    ($v:ident;
        $($one:ident::$verb:ident => $role:ident, $scope:ident $(($of:expr))?, $at:ident $(($place:expr))?, $repeat:ident -> $answer:ty;)*
        ;
        $($in:ident::$brings:ident => $in_role:ident, $in_scope:ident $(($in_of:expr))?, $in_at:ident $(($in_place:expr))?, $in_repeat:ident -> $in_answer:ty;)*
        ;
        $($all:ident::$gathers:ident => $all_role:ident, $all_scope:ident $(($all_of:expr))?, All, $all_repeat:ident -> $page:ty;)*
    ) => {
        $(implement!(@verb $v, $one::$verb, $role, $scope $(($of))?, $at $(($place))?, $repeat, $answer, {});)*
        $(implement!(@verb $v, $in::$brings, $in_role, $in_scope $(($in_of))?, $in_at $(($in_place))?, $in_repeat, $in_answer, {
            fn input(&mut self) -> Option<&mut Input> {
                Some(&mut self.input)
            }
        });)*
        $(implement!(@verb $v, $all::$gathers, $all_role, $all_scope $(($all_of))?, All, $all_repeat, $page, {
            fn page(&self, answers: Vec<Self::Answer>) -> Option<Self::Answer> {
                self.gather(answers)
            }
        });)*

        /// The whole table.
        pub const RIGHTS: &[Rights] = &[
            $(implement!(@rights $one::$verb, $scope),)*
            $(implement!(@rights $in::$brings, $in_scope),)*
            $(implement!(@rights $all::$gathers, $all_scope),)*
        ];
    };
    (@verb $v:ident, $module:ident::$verb:ident, $role:ident, $scope:ident $(($of:expr))?, $at:ident $(($place:expr))?, $repeat:ident, $answer:ty, {$($page:tt)*}) => {
        impl Verb for $module::$verb {
            type Answer = $answer;
            const NAME: &'static str = concat!(stringify!($module), ".", stringify!($verb));
            const ROLE: Role = Role::$role;
            const REPEAT: Repeat = Repeat::$repeat;
            fn scope(&self) -> Scope<'_> {
                let $v = self;
                let _ = $v;
                Scope::$scope $(($of))?
            }
            fn at(&self) -> At {
                let $v = self;
                let _ = $v;
                At::$at $(($place))?
            }
            $($page)*
        }
    };
    (@rights $module:ident::$verb:ident, $scope:ident) => {
        Rights {
            verb: <$module::$verb as Verb>::NAME,
            role: <$module::$verb as Verb>::ROLE,
            scope: stringify!($scope),
            repeat: <$module::$verb as Verb>::REPEAT,
        }
    };
}

use crate::{call, cluster, container, function, log, model, namespace, secret, token};
all_verbs!(implement);

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn verbs_have_names_of_their_own_and_only_reads_are_for_readers() {
        let names: BTreeSet<_> = RIGHTS.iter().map(|rights| rights.verb).collect();
        assert_eq!(names.len(), RIGHTS.len());
        for rights in RIGHTS {
            assert!(rights.role > Role::Read || rights.repeat == Repeat::Safe, "{rights:?} changes something");
        }
    }
}
