package placement.residency_test

import data.placement.residency

denied(given) := deny if {
	deny := residency.deny with input.workload as given.workload with input.clock as given.clock with input.pool as given.pool
}

everywhere(countries) := {
	"processing": countries,
	"ingress": countries,
	"storage": countries,
	"weights": countries,
	"support_access": countries,
}

document(changed_locations, expires) := {
	"workload": {"data": {"permitted_countries": ["DE", "FR"]}},
	"clock": {"date": "2026-11-22"},
	"pool": {
		"locations": object.union(everywhere(["DE"]), changed_locations),
		"evidence": {"expires": expires},
	},
}

test_every_location_inside_is_quiet if denied(document({}, "2027-01-31")) == set()

test_two_permitted_countries_are_quiet if denied(document({"storage": ["DE", "FR"]}, "2027-01-31")) == set()

test_each_location_counts if {
	refused_for("processing")
	refused_for("ingress")
	refused_for("storage")
	refused_for("weights")
	refused_for("support_access")
}

refused_for(aspect) if {
	deny := denied(document({aspect: ["US"]}, "2027-01-31"))
	deny == {{"rule": "location_not_permitted", "observed": {aspect: ["US"]}, "required": ["DE", "FR"]}}
}

test_one_country_of_several_is_enough if {
	deny := denied(document({"support_access": ["DE", "IN"]}, "2027-01-31"))
	{violation.observed | some violation in deny} == {{"support_access": ["IN"]}}
}

test_each_country_is_reported_once_for_the_pool if {
	deny := denied(document({"support_access": ["US", "IN"], "ingress": ["IE"]}, "2027-01-31"))
	{violation.observed | some violation in deny} == {{"support_access": ["US", "IN"], "ingress": ["IE"]}}
}

test_nothing_permitted_refuses_everything if {
	nothing := {"workload": {"data": {"permitted_countries": []}}}
	deny := denied(object.union(document({}, "2027-01-31"), nothing))
	{violation.observed | some violation in deny} == {everywhere(["DE"])}
}

test_a_location_without_a_country_is_refused if {
	deny := denied(document({"weights": []}, "2027-01-31"))
	deny == {{"rule": "location_unstated", "observed": {"weights": []}, "required": "at least one country"}}
}

test_evidence_of_yesterday_has_expired if {
	deny := denied(document({}, "2026-11-21"))
	deny == {{"rule": "evidence_expired", "observed": "2026-11-21", "required": "2026-11-22"}}
}

test_evidence_counts_through_its_last_day if denied(document({}, "2026-11-22")) == set()
