package placement.sovereignty_test

import data.placement.sovereignty

denied(given) := deny if {
	deny := sovereignty.deny with input.tenant as given.tenant with input.workload as given.workload with input.pool as given.pool
}

denied_without_settings(given) := deny if {
	deny := sovereignty.deny with input.tenant as given.tenant with input.workload as given.workload with input.pool as given.pool with data.settings as {}
}

rules(given) := {violation.rule | some violation in denied(given)}

# A European bank's confidential data on a European operator's pool.
document(control, classification, pool) := {
	"tenant": {"foreign_control": control, "permitted_seats": ["DE", "FR"]},
	"workload": {"data": {"classification": classification, "permitted_countries": ["DE", "FR"]}},
	"pool": object.union(
		{
			"operator": {"name": "Own", "seat": "DE", "parent_seat": "DE"},
			"region_binding": "enforced",
			"sub_processors": [],
		},
		pool,
	),
}

american := {"operator": {"seat": "DE", "parent_seat": "US"}}

preferred := {"region_binding": "preferred"}

helpdesk(seat, countries) := {"sub_processors": [{"name": "Helpdesk", "seat": seat, "countries": countries}]}

test_operator_of_a_permitted_seat_is_quiet if rules(document("hard", "confidential", {})) == set()

test_foreign_parent_is_refused_for_good if {
	denied(document("hard", "confidential", american)) == {{
		"rule": "foreign_control",
		"observed": {"parent_seat": "US"},
		"required": ["DE", "FR"],
	}}
}

test_foreign_operator_is_refused if {
	deny := denied(document("hard", "public", {"operator": {"seat": "US", "parent_seat": "US"}}))
	{violation.observed | some violation in deny} == {{"operator_seat": "US", "parent_seat": "US"}}
}

test_soft_control_can_be_waived if rules(document("soft", "confidential", american)) == {"foreign_control_soft"}

test_control_switched_off_is_quiet if rules(document("off", "confidential", american)) == set()

test_an_unknown_switch_counts_as_hard if rules(document("none", "confidential", american)) == {"foreign_control"}

test_preferred_region_is_refused_for_classified_data if {
	rules(document("off", "confidential", preferred)) == {"region_not_enforced"}
	rules(document("off", "restricted", preferred)) == {"region_not_enforced"}
}

test_preferred_region_is_fine_for_open_data if {
	rules(document("off", "internal", preferred)) == set()
	rules(document("off", "public", preferred)) == set()
}

test_an_unknown_classification_counts_as_classified if {
	rules(document("off", "secret", preferred)) == {"region_not_enforced"}
}

test_sub_processor_at_home_is_quiet if {
	rules(document("hard", "restricted", helpdesk("FR", ["FR", "DE"]))) == set()
}

test_sub_processor_seated_abroad_is_foreign_control if {
	deny := denied(document("hard", "confidential", helpdesk("IN", ["DE"])))
	{violation.rule | some violation in deny} == {"foreign_control"}
	{violation.observed | some violation in deny} == {{"sub_processors": [{"name": "Helpdesk", "seat": "IN"}]}}
}

test_sub_processor_working_abroad_is_refused_whatever_the_control if {
	deny := denied(document("off", "confidential", helpdesk("IN", ["DE", "IN"])))
	{violation.rule | some violation in deny} == {"sub_processor_location_not_permitted"}
	{violation.observed | some violation in deny} == {[{"name": "Helpdesk", "countries": ["IN"]}]}
}

test_sub_processors_of_open_data_are_not_tested if {
	rules(document("hard", "internal", helpdesk("IN", ["IN"]))) == set()
}

test_without_settings_all_data_is_classified if {
	deny := denied_without_settings(document("off", "public", {"region_binding": "preferred"}))
	{violation.rule | some violation in deny} == {"region_not_enforced"}
}
