package placement.models_test

import data.placement.models

denied(given) := deny if {
	deny := models.deny with input.workload as given.workload with input.model as given.model with input.serving as given.serving with input.clock as given.clock
}

denied_without_settings(given) := deny if {
	deny := models.deny with input.workload as given.workload with input.model as given.model with input.serving as given.serving with input.clock as given.clock with data.settings as {}
}

warned(given) := warn if {
	warn := models.warn with input.workload as given.workload with input.model as given.model with input.serving as given.serving with input.clock as given.clock
}

rules(given) := {violation.rule | some violation in denied(given)}

document(environment, model, serving) := {
	"workload": {
		"environment": environment,
		"model_version": "2026-10",
		"profile": {"task": "rag"},
	},
	"model": object.union(
		{
			"version": "2026-10",
			"digest": "sha256:aa",
			"approved_in": ["experiment", "dev", "staging", "prod"],
			"permitted_tasks": ["chat", "rag"],
			"risk_tier": "limited",
			"validation_expires": "2027-03-31",
		},
		model,
	),
	"serving": object.union(
		{"version": "2026-10", "digest": "sha256:aa", "verified_by": "server_name"},
		serving,
	),
	"clock": {"date": "2026-11-22"},
}

high := {"risk_tier": "high"}

overdue := {"validation_expires": "2026-11-21"}

test_the_approved_version_is_quiet if {
	rules(document("prod", {}, {})) == set()
	warned(document("prod", {}, {})) == set()
}

test_a_version_approved_elsewhere_is_refused if {
	denied(document("prod", {"approved_in": ["dev", "staging"]}, {})) == {{
		"rule": "version_not_approved",
		"observed": {"version": "2026-10", "approved_in": ["dev", "staging"]},
		"required": "prod",
	}}
	rules(document("staging", {"approved_in": ["dev", "staging"]}, {})) == set()
}

test_a_version_approved_nowhere_is_refused if {
	rules(document("experiment", {"approved_in": []}, {})) == {"version_not_approved"}
}

test_another_version_is_refused if {
	denied(document("prod", {}, {"version": "2026-09"})) == {{
		"rule": "version_differs",
		"observed": "2026-09",
		"required": "2026-10",
	}}
}

test_the_right_name_on_other_weights_is_refused if {
	rules(document("dev", {}, {"digest": "sha256:bb"})) == {"digest_differs"}
}

test_a_task_outside_the_permitted_use_is_refused if {
	rules(document("prod", {"permitted_tasks": ["chat"]}, {})) == {"task_not_permitted"}
	rules(document("prod", {"permitted_tasks": []}, {})) == {"task_not_permitted"}
}

test_a_high_risk_model_needs_proof_of_its_weights if {
	rules(document("prod", high, {})) == {"high_risk_unproven"}
	rules(document("staging", high, {})) == {"high_risk_unproven"}
	rules(document("prod", high, {"verified_by": "weights_digest"})) == set()
	rules(document("prod", high, {"verified_by": "signed_manifest"})) == set()
}

test_a_high_risk_model_may_be_tried_out_without_proof if {
	rules(document("dev", high, {})) == set()
	rules(document("experiment", high, {})) == set()
}

test_an_unknown_risk_tier_counts_as_high if {
	rules(document("prod", {"risk_tier": "unsure"}, {})) == {"high_risk_unproven"}
	rules(document("prod", {"risk_tier": "minimal"}, {})) == set()
}

test_validation_counts_through_its_last_day if {
	rules(document("prod", {"validation_expires": "2026-11-22"}, {})) == set()
}

test_overdue_validation_refuses_for_good_in_prod if {
	denied(document("prod", overdue, {})) == {{
		"rule": "validation_overdue",
		"observed": "2026-11-21",
		"required": "2026-11-22",
	}}
	warned(document("prod", overdue, {})) == set()
}

test_overdue_validation_can_be_waived_in_staging if {
	rules(document("staging", overdue, {})) == {"validation_overdue_soft"}
	warned(document("staging", overdue, {})) == set()
}

test_overdue_validation_warns_where_models_are_tried_out if {
	rules(document("dev", overdue, {})) == set()
	rules(document("experiment", overdue, {})) == set()
	warned(document("dev", overdue, {})) == {{
		"rule": "validation_overdue_warning",
		"observed": "2026-11-21",
		"required": "2026-11-22",
	}}
}

test_without_settings_the_strictest_holds if {
	deny := denied_without_settings(document("dev", {"risk_tier": "high", "validation_expires": "2026-11-21"}, {}))
	{violation.rule | some violation in deny} == {"high_risk_unproven", "validation_overdue"}
}
