# METADATA
# title: The pool keeps what the SLA class promises
# custom:
#   enforcement: soft
#   owner: platform
#   remedy: choose a faster or steadier pool, or a milder SLA class
package placement.sla

# METADATA
# title: The first token comes too late for one caller in twenty
deny contains violation if {
	input.serving.ttft_p95_ms > input.sla.ttft_p95_ms
	violation := {
		"rule": "first_token_p95_too_slow",
		"observed": input.serving.ttft_p95_ms,
		"required": input.sla.ttft_p95_ms,
	}
}

# METADATA
# title: The first token comes too late for one caller in a hundred
deny contains violation if {
	input.serving.ttft_p99_ms > input.sla.ttft_p99_ms
	violation := {
		"rule": "first_token_p99_too_slow",
		"observed": input.serving.ttft_p99_ms,
		"required": input.sla.ttft_p99_ms,
	}
}

# METADATA
# title: One stream is slower than promised
deny contains violation if {
	input.serving.stream_tokens_per_s < input.sla.stream_tokens_per_s
	violation := {
		"rule": "stream_too_slow",
		"observed": input.serving.stream_tokens_per_s,
		"required": input.sla.stream_tokens_per_s,
	}
}

# METADATA
# title: The pool is available less than promised
deny contains violation if {
	input.pool.availability_ppm < input.sla.availability_ppm
	violation := {
		"rule": "availability_too_low",
		"observed": input.pool.availability_ppm,
		"required": input.sla.availability_ppm,
	}
}

# METADATA
# title: The pool scales to zero and the class allows no cold start
# custom:
#   remedy: choose a pool that stays warm, or pay for instances kept warm
deny contains violation if {
	input.pool.scale_to_zero != false
	input.sla.cold_start_allowed != true
	violation := {
		"rule": "cold_start_not_allowed",
		"observed": {"scale_to_zero": input.pool.scale_to_zero, "cold_start_ms": input.pool.cold_start_ms},
		"required": false,
	}
}

# METADATA
# title: The pool can be reclaimed and the class allows no interruption
# custom:
#   remedy: choose on-demand, committed or own capacity
deny contains violation if {
	input.sla.interruption_allowed != true
	input.pool.interruption_per_hour_ppm > uninterrupted_per_hour_ppm
	violation := {
		"rule": "interruption_not_allowed",
		"observed": input.pool.interruption_per_hour_ppm,
		"required": uninterrupted_per_hour_ppm,
	}
}

# METADATA
# title: Others compete for the pool and the class allows no contention
deny contains violation if {
	input.pool.contended != false
	input.sla.contention_allowed != true
	violation := {"rule": "contention_not_allowed", "observed": true, "required": false}
}

default uninterrupted_per_hour_ppm := -1

uninterrupted_per_hour_ppm := data.settings.sla.uninterrupted_per_hour_ppm
