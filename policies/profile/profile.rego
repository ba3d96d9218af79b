# METADATA
# title: Work goes where its shape is cheapest to serve
# description: Preferences only; nothing here refuses a pool.
# custom:
#   enforcement: advisory
#   owner: platform
#   remedy: change the points in settings.yaml, or the weight of preference in the SLA class
package placement.profile

prefer := sum([light, steady, rag, batch])

default light := 0

light := data.settings.profile.light_on_pay_per_use if {
	is_light
	pay_per_use
}

light := data.settings.profile.light_on_reserved if {
	is_light
	reserved
}

default steady := 0

steady := data.settings.profile.steady_on_reserved if {
	input.workload.profile.urgency == "interactive"
	input.workload.profile.traffic == "steady"
	not is_light
	reserved
}

default rag := 0

rag := data.settings.profile.rag_on_large_memory if {
	input.workload.profile.task == "rag"
	input.workload.profile.memory_bound == true
	input.pool.accelerator.memory_gib >= data.settings.profile.large_memory_gib
}

default batch := 0

batch := data.settings.profile.batch_on_spot if {
	input.workload.profile.urgency == "batch"
	input.pool.kind == "spot"
}

batch := data.settings.profile.batch_on_reserved_off_peak if {
	input.workload.profile.urgency == "batch"
	reserved
	not peak
}

batch := data.settings.profile.batch_on_reserved_peak if {
	input.workload.profile.urgency == "batch"
	reserved
	peak
}

is_light if input.workload.environment == "experiment"

is_light if input.workload.profile.traffic == "intermittent"

pay_per_use if input.pool.kind in data.settings.profile.pay_per_use_kinds

reserved if input.pool.kind in data.settings.profile.reserved_kinds

# Hours are numbered 0..167 from Monday 00:00, so each day of work is one range of them.
peak if {
	some day in data.settings.profile.peak_days
	input.clock.hour_of_week >= (day * 24) + data.settings.profile.peak_from_hour
	input.clock.hour_of_week < (day * 24) + data.settings.profile.peak_until_hour
}
