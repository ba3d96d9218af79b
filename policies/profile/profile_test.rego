package placement.profile_test

import data.placement.profile

preferred(given) := prefer if {
	prefer := profile.prefer with input.workload as given.workload with input.pool as given.pool with input.clock as given.clock
}

monday_noon := 12

monday_night := 22

sunday_noon := (6 * 24) + 12

# A production chat that prefers nothing, on a pool of 80 GiB accelerators.
document(kind, workload, shape) := {
	"workload": object.union(
		{"environment": "prod", "profile": object.union(
			{"urgency": "standard", "traffic": "bursty", "task": "chat", "memory_bound": false},
			shape,
		)},
		workload,
	),
	"pool": {"kind": kind, "accelerator": {"memory_gib": 80}},
	"clock": {"hour_of_week": monday_noon},
}

at(hour_of_week, given) := object.union(given, {"clock": {"hour_of_week": hour_of_week}})

large(given) := object.union(given, {"pool": {"kind": given.pool.kind, "accelerator": {"memory_gib": 141}}})

batch := {"urgency": "batch"}

steady := {"urgency": "interactive", "traffic": "steady"}

rag := {"task": "rag", "memory_bound": true}

intermittent := {"traffic": "intermittent"}

experiment := {"environment": "experiment"}

test_work_without_a_shape_prefers_nothing if {
	preferred(document("on_prem", {}, {})) == 0
	preferred(document("api", {}, {})) == 0
}

test_experiments_pay_per_use if {
	preferred(document("serverless", experiment, {})) == 700
	preferred(document("api", experiment, {})) == 700
	preferred(document("on_prem", experiment, {})) == -600
	preferred(document("on_demand", experiment, {})) == 0
}

test_intermittent_traffic_pays_per_use if {
	preferred(document("serverless", {}, intermittent)) == 700
	preferred(document("committed", {}, intermittent)) == -600
}

test_an_intermittent_experiment_counts_once if {
	preferred(document("api", experiment, intermittent)) == 700
}

test_steady_interactive_traffic_goes_to_reserved_capacity if {
	preferred(document("on_prem", {}, steady)) == 600
	preferred(document("committed", {}, steady)) == 600
	preferred(document("on_demand", {}, steady)) == 0
	preferred(document("on_prem", {}, {"urgency": "interactive"})) == 0
}

test_a_steady_experiment_does_not_take_reserved_capacity if {
	preferred(document("on_prem", experiment, steady)) == -600
}

test_memory_bound_rag_goes_to_large_memory if {
	preferred(large(document("on_demand", {}, rag))) == 300
	preferred(document("on_demand", {}, rag)) == 0
	preferred(large(document("on_demand", {}, {"task": "rag"}))) == 0
	preferred(large(document("on_demand", {}, {"memory_bound": true}))) == 0
}

test_points_add_up if {
	preferred(large(document("on_prem", {}, object.union(steady, rag)))) == 900
}

test_batch_goes_to_spot_at_any_hour if {
	preferred(document("spot", {}, batch)) == 600
	preferred(at(monday_night, document("spot", {}, batch))) == 600
	preferred(document("spot", {}, {})) == 0
}

test_batch_uses_reserved_capacity_off_peak if {
	preferred(document("on_prem", {}, batch)) == -400
	preferred(at(monday_night, document("on_prem", {}, batch))) == 400
	preferred(at(sunday_noon, document("committed", {}, batch))) == 400
}

test_peak_begins_and_ends_on_the_hour if {
	preferred(at(7, document("on_prem", {}, batch))) == 400
	preferred(at(8, document("on_prem", {}, batch))) == -400
	preferred(at(19, document("on_prem", {}, batch))) == -400
	preferred(at(20, document("on_prem", {}, batch))) == 400
}

test_peak_is_every_working_day if {
	preferred(at(96 + 12, document("on_prem", {}, batch))) == -400
	preferred(at(120 + 12, document("on_prem", {}, batch))) == 400
}

test_the_shipped_points_stay_within_bounds if {
	points := data.settings.profile
	highest := max([points.light_on_pay_per_use, points.steady_on_reserved, points.batch_on_spot])
	highest + points.rag_on_large_memory <= 1000
	points.light_on_reserved + points.batch_on_reserved_peak >= -1000
}
