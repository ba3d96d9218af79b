# METADATA
# title: Only the approved version of a model runs, for what it is permitted for
# custom:
#   enforcement: hard
#   owner: model-governance
#   remedy: ask for an approved version, or have this one approved for the environment
package placement.models

# METADATA
# title: The version is not approved for the environment
deny contains violation if {
	not input.workload.environment in input.model.approved_in
	violation := {
		"rule": "version_not_approved",
		"observed": {"version": input.model.version, "approved_in": input.model.approved_in},
		"required": input.workload.environment,
	}
}

# METADATA
# title: The pool serves another version than the workload asks for
# custom:
#   remedy: choose a pool that serves this version, or roll the pool to it
deny contains violation if {
	input.serving.version != input.workload.model_version
	violation := {
		"rule": "version_differs",
		"observed": input.serving.version,
		"required": input.workload.model_version,
	}
}

# METADATA
# title: The pool serves other weights than the registry holds for this version
# custom:
#   remedy: find out which weights the pool loaded before anything runs on it
deny contains violation if {
	input.serving.digest != input.model.digest
	violation := {"rule": "digest_differs", "observed": input.serving.digest, "required": input.model.digest}
}

# METADATA
# title: The model may not be used for this task
# custom:
#   remedy: choose a model whose permitted use covers the task
deny contains violation if {
	not input.workload.profile.task in input.model.permitted_tasks
	violation := {
		"rule": "task_not_permitted",
		"observed": input.workload.profile.task,
		"required": input.model.permitted_tasks,
	}
}

# METADATA
# title: A high-risk model needs proof of the weights, not a name that the server reports
# custom:
#   remedy: choose a pool whose weights were verified by digest or by a signed manifest
deny contains violation if {
	not input.model.risk_tier in {"minimal", "limited"}
	not unproven_permitted
	not input.serving.verified_by in strong_proofs
	violation := {
		"rule": "high_risk_unproven",
		"observed": {"risk_tier": input.model.risk_tier, "verified_by": input.serving.verified_by},
		"required": strong_proofs,
	}
}

# METADATA
# title: The validation of the version is overdue
# custom:
#   remedy: validate the version again and enter the new date
deny contains violation if {
	overdue
	not waivable
	not warns
	violation := {
		"rule": "validation_overdue",
		"observed": input.model.validation_expires,
		"required": input.clock.date,
	}
}

# METADATA
# title: The validation of the version is overdue (waivable in this environment)
# custom:
#   enforcement: soft
#   remedy: validate the version again, or ask model governance for a waiver with an end date
deny contains violation if {
	overdue
	waivable
	violation := {
		"rule": "validation_overdue_soft",
		"observed": input.model.validation_expires,
		"required": input.clock.date,
	}
}

# METADATA
# title: The validation of the version is overdue (a warning in this environment)
# custom:
#   enforcement: advisory
#   remedy: validate the version again before it leaves this environment
warn contains violation if {
	overdue
	warns
	violation := {
		"rule": "validation_overdue_warning",
		"observed": input.model.validation_expires,
		"required": input.clock.date,
	}
}

default strong_proofs := []

strong_proofs := data.settings.models.strong_proofs

overdue if input.model.validation_expires < input.clock.date

waivable if input.workload.environment in data.settings.models.validation_waivable_in

warns if input.workload.environment in data.settings.models.validation_warns_in

unproven_permitted if input.workload.environment in data.settings.models.unproven_permitted_in
