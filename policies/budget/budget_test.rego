package placement.budget_test

import data.placement.budget

denied(given) := deny if {
	deny := budget.deny with input.budget as given.budget with input.pool as given.pool with input.workload as given.workload
}

denied_without_settings(given) := deny if {
	deny := budget.deny with input.budget as given.budget with input.pool as given.pool with input.workload as given.workload with data.settings as {}
}

warned(given) := warn if {
	warn := budget.warn with input.budget as given.budget with input.pool as given.pool with input.workload as given.workload
}

preferred(given) := prefer if {
	prefer := budget.prefer with input.budget as given.budget with input.pool as given.pool with input.workload as given.workload
}

rules(given) := {violation.rule | some violation in denied(given)}

document(crossed_percent, kind, environment, urgency) := {
	"budget": {"crossed_percent": crossed_percent},
	"pool": {"kind": kind},
	"workload": {"environment": environment, "profile": {"urgency": urgency}},
}

test_below_every_threshold_is_quiet if {
	rules(document(79, "on_demand", "dev", "batch")) == set()
	warned(document(79, "on_demand", "dev", "batch")) == set()
	not preferred(document(79, "on_demand", "dev", "batch"))
}

test_from_eighty_percent_expensive_kinds_warn_and_step_back if {
	rules(document(80, "spot", "dev", "batch")) == set()
	warned(document(80, "spot", "dev", "batch")) == {{
		"rule": "budget_nearly_used",
		"observed": 80,
		"required": 80,
	}}
	preferred(document(80, "spot", "dev", "batch")) == -300
}

test_paid_kinds_neither_warn_nor_step_back if {
	warned(document(95, "on_prem", "dev", "batch")) == set()
	not preferred(document(95, "on_prem", "dev", "batch"))
	rules(document(95, "committed", "dev", "batch")) == set()
}

test_from_ninety_five_percent_only_urgent_work_in_production_spends if {
	rules(document(94, "api", "dev", "interactive")) == set()
	rules(document(95, "api", "dev", "interactive")) == {"budget_kept_for_urgent_work"}
	rules(document(95, "serverless", "prod", "batch")) == {"budget_kept_for_urgent_work"}
	rules(document(95, "on_demand", "prod", "interactive")) == set()
	rules(document(95, "on_demand", "prod", "standard")) == set()
}

test_a_kept_budget_names_the_kind if {
	denied(document(95, "on_demand", "dev", "batch")) == {{
		"rule": "budget_kept_for_urgent_work",
		"observed": {"crossed_percent": 95, "kind": "on_demand"},
		"required": 95,
	}}
}

test_an_unknown_kind_counts_as_expensive if {
	rules(document(95, "barter", "dev", "batch")) == {"budget_kept_for_urgent_work"}
}

test_at_a_hundred_percent_everything_stops if {
	rules(document(100, "on_prem", "prod", "interactive")) == {"budget_exhausted"}
	rules(document(100, "on_demand", "prod", "interactive")) == {"budget_exhausted"}
	rules(document(120, "on_prem", "prod", "interactive")) == {"budget_exhausted"}
}

test_without_settings_nothing_is_spent if {
	deny := denied_without_settings(document(0, "on_prem", "prod", "interactive"))
	"budget_exhausted" in {violation.rule | some violation in deny}
}
