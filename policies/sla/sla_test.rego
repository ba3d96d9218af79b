package placement.sla_test

import data.placement.sla

denied(given) := deny if {
	deny := sla.deny with input.sla as given.sla with input.pool as given.pool with input.serving as given.serving
}

denied_without_settings(given) := deny if {
	deny := sla.deny with input.sla as given.sla with input.pool as given.pool with input.serving as given.serving with data.settings as {}
}

rules(given) := {violation.rule | some violation in denied(given)}

# A class that allows nothing, on a pool that just keeps it.
document(class, pool, serving) := {
	"sla": object.union(
		{
			"ttft_p95_ms": 400,
			"ttft_p99_ms": 900,
			"stream_tokens_per_s": 30,
			"availability_ppm": 999000,
			"cold_start_allowed": false,
			"contention_allowed": false,
			"interruption_allowed": false,
		},
		class,
	),
	"pool": object.union(
		{
			"availability_ppm": 999000,
			"scale_to_zero": false,
			"cold_start_ms": 0,
			"contended": false,
			"interruption_per_hour_ppm": 0,
		},
		pool,
	),
	"serving": object.union(
		{"ttft_p95_ms": 400, "ttft_p99_ms": 900, "stream_tokens_per_s": 30},
		serving,
	),
}

test_a_pool_that_just_keeps_the_class_is_quiet if rules(document({}, {}, {})) == set()

test_first_token_one_millisecond_late_is_refused if {
	rules(document({}, {}, {"ttft_p95_ms": 401})) == {"first_token_p95_too_slow"}
	rules(document({}, {}, {"ttft_p99_ms": 901})) == {"first_token_p99_too_slow"}
}

test_a_slow_pool_says_by_how_much if {
	denied(document({}, {}, {"ttft_p95_ms": 401})) == {{
		"rule": "first_token_p95_too_slow",
		"observed": 401,
		"required": 400,
	}}
}

test_a_slower_stream_is_refused if rules(document({}, {}, {"stream_tokens_per_s": 29})) == {"stream_too_slow"}

test_lower_availability_is_refused if {
	rules(document({}, {"availability_ppm": 998999}, {})) == {"availability_too_low"}
}

test_cold_starts_need_the_class if {
	sleepy := {"scale_to_zero": true, "cold_start_ms": 20000}
	denied(document({}, sleepy, {})) == {{
		"rule": "cold_start_not_allowed",
		"observed": {"scale_to_zero": true, "cold_start_ms": 20000},
		"required": false,
	}}
	rules(document({"cold_start_allowed": true}, sleepy, {})) == set()
}

test_a_warm_pool_may_take_long_to_grow if rules(document({}, {"cold_start_ms": 600000}, {})) == set()

test_ordinary_maintenance_is_no_interruption if {
	rules(document({}, {"interruption_per_hour_ppm": 500}, {})) == set()
}

test_interruptions_need_the_class if {
	rules(document({}, {"interruption_per_hour_ppm": 501}, {})) == {"interruption_not_allowed"}
	rules(document({"interruption_allowed": true}, {"interruption_per_hour_ppm": 90000}, {})) == set()
}

test_contention_needs_the_class if {
	rules(document({}, {"contended": true}, {})) == {"contention_not_allowed"}
	rules(document({"contention_allowed": true}, {"contended": true}, {})) == set()
}

test_every_broken_promise_is_reported if {
	slow := {"ttft_p95_ms": 5000, "ttft_p99_ms": 9000, "stream_tokens_per_s": 1}
	bad := {"availability_ppm": 900000, "scale_to_zero": true, "contended": true, "interruption_per_hour_ppm": 50000}
	count(rules(document({}, bad, slow))) == 7
}

test_without_settings_any_interruption_counts if {
	deny := denied_without_settings(document({}, {"interruption_per_hour_ppm": 0}, {}))
	{violation.rule | some violation in deny} == {"interruption_not_allowed"}
}
