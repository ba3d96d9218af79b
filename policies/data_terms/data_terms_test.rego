package placement.data_terms_test

import data.placement.data_terms

denied(given) := deny if {
	deny := data_terms.deny with input.workload as given.workload with input.tenant as given.tenant with input.pool as given.pool
}

denied_without_settings(given) := deny if {
	deny := data_terms.deny with input.workload as given.workload with input.tenant as given.tenant with input.pool as given.pool with data.settings as {}
}

rules(given) := {violation.rule | some violation in denied(given)}

obliged(given) := obligation if {
	obligation := data_terms.obligation with input.workload as given.workload with input.tenant as given.tenant with input.pool as given.pool
}

document(data_facts, tenant, pool) := {
	"workload": {"data": object.union(
		{"classification": "public", "categories": [], "obligations": []},
		data_facts,
	)},
	"tenant": object.union({"max_retention_days": 0, "training_allowed": false}, tenant),
	"pool": object.union({"retention_days": 0, "trains_on_data": false}, pool),
}

training := {"trains_on_data": true}

allowed := {"training_allowed": true}

test_a_provider_that_keeps_nothing_is_quiet if rules(document({}, {}, {})) == set()

test_retention_up_to_the_limit_is_quiet if {
	rules(document({}, {"max_retention_days": 30}, {"retention_days": 30})) == set()
}

test_retention_above_the_limit_is_refused if {
	denied(document({}, {"max_retention_days": 30}, {"retention_days": 31})) == {{
		"rule": "retention_too_long",
		"observed": 31,
		"required": 30,
	}}
}

test_a_source_may_demand_that_nothing_is_kept if {
	owed := {"obligations": ["zero_retention"]}
	rules(document(owed, {"max_retention_days": 30}, {"retention_days": 1})) == {"zero_retention_owed"}
	rules(document(owed, {"max_retention_days": 30}, {"retention_days": 0})) == set()
}

test_training_needs_the_tenant if {
	rules(document({}, {}, training)) == {"training_not_allowed"}
	rules(document({}, allowed, training)) == set()
	rules(document({}, {}, {"trains_on_data": false})) == set()
}

test_training_on_classified_data_is_refused_even_when_allowed if {
	rules(document({"classification": "internal"}, allowed, training)) == set()
	rules(document({"classification": "confidential"}, allowed, training)) == {"training_on_protected_data"}
	rules(document({"classification": "restricted"}, allowed, training)) == {"training_on_protected_data"}
}

test_training_on_protected_categories_is_refused_even_when_allowed if {
	rules(document({"categories": ["personal"]}, allowed, training)) == {"training_on_protected_data"}
	rules(document({"categories": ["personal", "health"]}, allowed, training)) == {"training_on_protected_data"}
}

test_protected_data_is_quiet_where_nobody_trains if {
	rules(document({"classification": "restricted", "categories": ["health"]}, allowed, {})) == set()
}

test_obligations_of_the_sources_are_passed_on if {
	obliged(document({"obligations": ["log_redaction", "zero_retention"]}, {}, {})) == {
		{"name": "log_redaction", "value": true},
		{"name": "zero_retention", "value": true},
	}
	obliged(document({}, {}, {})) == set()
}

test_without_settings_nobody_trains if {
	deny := denied_without_settings(document({}, {"training_allowed": true}, {"trains_on_data": true}))
	{violation.rule | some violation in deny} == {"training_on_protected_data"}
}
