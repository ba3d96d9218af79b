# METADATA
# title: Spending slows down before it stops
# description: Only thresholds reach this package; exact limits are held by the ledger when budget is reserved.
# custom:
#   enforcement: hard
#   owner: finance
#   remedy: wait for the next budget window, or have the budget raised
package placement.budget

# METADATA
# title: The budget is used up
deny contains violation if {
	input.budget.crossed_percent >= exhausted_percent
	violation := {
		"rule": "budget_exhausted",
		"observed": input.budget.crossed_percent,
		"required": exhausted_percent,
	}
}

# METADATA
# title: What is left of the budget is kept for urgent work in production
# custom:
#   enforcement: soft
#   remedy: use capacity that is already paid, or ask finance for a waiver with an end date
deny contains violation if {
	input.budget.crossed_percent >= protected_percent
	expensive
	not protected
	violation := {
		"rule": "budget_kept_for_urgent_work",
		"observed": {"crossed_percent": input.budget.crossed_percent, "kind": input.pool.kind},
		"required": protected_percent,
	}
}

# METADATA
# title: The budget is nearly used and this pool costs money for each further use
# custom:
#   enforcement: advisory
warn contains violation if {
	input.budget.crossed_percent >= data.settings.budget.warning_percent
	expensive
	violation := {
		"rule": "budget_nearly_used",
		"observed": input.budget.crossed_percent,
		"required": data.settings.budget.warning_percent,
	}
}

prefer := data.settings.budget.demotion if {
	input.budget.crossed_percent >= data.settings.budget.warning_percent
	expensive
}

# Without a setting every pool is refused, rather than none.
default exhausted_percent := 0

exhausted_percent := data.settings.budget.exhausted_percent

default protected_percent := 0

protected_percent := data.settings.budget.protected_percent

expensive if not paid

paid if input.pool.kind in data.settings.budget.paid_kinds

protected if {
	input.workload.environment in data.settings.budget.protected_environments
	input.workload.profile.urgency in data.settings.budget.protected_urgencies
}
