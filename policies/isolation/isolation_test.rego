package placement.isolation_test

import data.placement.isolation

denied(given) := deny if {
	deny := isolation.deny with input.tenant as given.tenant with input.pool as given.pool with input.workload as given.workload with input.clock as given.clock
}

denied_without_settings(given) := deny if {
	deny := isolation.deny with input.tenant as given.tenant with input.pool as given.pool with input.workload as given.workload with input.clock as given.clock with data.settings as {}
}

rules(given) := {violation.rule | some violation in denied(given)}

# A tenant with the highest floors on its own pool.
document(tenant, pool, classification) := {
	"tenant": object.union(
		{
			"name": "bank",
			"tenancy": "dedicated",
			"network": "private",
			"account": "ours",
			"certifications": [],
		},
		tenant,
	),
	"pool": object.union(
		{
			"tenancy": "dedicated",
			"network": "private",
			"account": "ours",
			"dedicated_to": [],
			"certifications": [],
		},
		pool,
	),
	"workload": {"data": {"classification": classification}},
	"clock": {"date": "2026-11-22"},
}

certified(name, expires) := {"certifications": [{"name": name, "expires": expires}]}

tenancy(floor, offered) := rules(document({"tenancy": floor}, {"tenancy": offered}, "internal"))

test_the_highest_floors_on_an_own_pool_are_quiet if rules(document({}, {}, "restricted")) == set()

test_tenancy_at_or_above_the_floor_is_quiet if {
	tenancy("shared", "shared") == set()
	tenancy("shared", "single_tenant") == set()
	tenancy("single_tenant", "single_tenant") == set()
	tenancy("single_tenant", "dedicated") == set()
}

test_tenancy_below_the_floor_is_refused if {
	tenancy("single_tenant", "shared") == {"tenancy_too_open"}
	tenancy("dedicated", "single_tenant") == {"tenancy_too_open"}
	tenancy("dedicated", "shared") == {"tenancy_too_open"}
}

test_words_that_no_table_knows_are_refused if {
	tenancy("shared", "cosy") == {"tenancy_too_open"}
	tenancy("cosy", "dedicated") == {"tenancy_too_open"}
	rules(document({}, {"network": "vpn"}, "public")) == {"network_too_open"}
	rules(document({}, {"account": "theirs"}, "public")) == {"account_not_ours"}
}

test_tenancy_is_explained if {
	denied(document({}, {"tenancy": "single_tenant"}, "public")) == {{
		"rule": "tenancy_too_open",
		"observed": "single_tenant",
		"required": "dedicated",
	}}
}

test_public_network_below_a_private_floor_is_refused if {
	rules(document({}, {"network": "public"}, "public")) == {"network_too_open"}
	rules(document({"network": "public"}, {"network": "public"}, "public")) == set()
	rules(document({"network": "public"}, {"network": "private"}, "public")) == set()
}

test_provider_account_below_our_floor_is_refused if {
	rules(document({}, {"account": "provider"}, "public")) == {"account_not_ours"}
	rules(document({"account": "provider"}, {"account": "provider"}, "public")) == set()
	rules(document({"account": "provider"}, {"account": "ours"}, "public")) == set()
}

test_pool_of_others_is_refused if {
	denied(document({}, {"dedicated_to": ["hospital"]}, "public")) == {{
		"rule": "dedicated_to_others",
		"observed": ["hospital"],
		"required": "bank",
	}}
}

test_pool_of_ours_is_quiet if {
	rules(document({}, {"dedicated_to": ["hospital", "bank"]}, "public")) == set()
}

test_restricted_data_never_shares_a_pool if {
	shared := {"tenancy": "shared"}
	rules(document(shared, shared, "restricted")) == {"shared_pool_for_restricted_data"}
	rules(document(shared, shared, "confidential")) == set()
	rules(document(shared, {"tenancy": "single_tenant"}, "restricted")) == set()
}

test_an_unknown_classification_never_shares_a_pool if {
	shared := {"tenancy": "shared"}
	rules(document(shared, shared, "secret")) == {"shared_pool_for_restricted_data"}
}

test_missing_certification_is_refused if {
	denied(document({"certifications": ["C5"]}, certified("SOC2", "2027-12-31"), "public")) == {{
		"rule": "certification_missing",
		"observed": {"SOC2"},
		"required": "C5",
	}}
}

test_expired_certification_is_refused if {
	denied(document({"certifications": ["C5"]}, certified("C5", "2026-11-21"), "public")) == {{
		"rule": "certification_expired",
		"observed": {"C5": ["2026-11-21"]},
		"required": "2026-11-22",
	}}
}

test_certification_counts_through_its_last_day if {
	rules(document({"certifications": ["C5"]}, certified("C5", "2026-11-22"), "public")) == set()
}

test_a_renewed_certificate_beside_the_old_one_counts if {
	both := {"certifications": [
		{"name": "C5", "expires": "2026-01-31"},
		{"name": "C5", "expires": "2028-01-31"},
	]}
	rules(document({"certifications": ["C5"]}, both, "public")) == set()
}

test_certifications_that_nobody_asks_for_do_not_matter if {
	rules(document({}, certified("C5", "2020-01-01"), "public")) == set()
}

test_without_settings_nothing_shares_a_pool if {
	shared := {"tenancy": "shared"}
	document_of_public_data := document(shared, shared, "public")
	deny := denied_without_settings(document_of_public_data)
	{violation.rule | some violation in deny} == {"shared_pool_for_restricted_data"}
}
