# METADATA
# title: The provider keeps and uses data only as the tenant accepts
# custom:
#   enforcement: hard
#   owner: data-protection
#   remedy: choose a pool with stricter terms, or agree them with the provider and enter the contract
package placement.data_terms

# METADATA
# title: The provider keeps data longer than the tenant accepts
deny contains violation if {
	input.pool.retention_days > input.tenant.max_retention_days
	violation := {
		"rule": "retention_too_long",
		"observed": input.pool.retention_days,
		"required": input.tenant.max_retention_days,
	}
}

# METADATA
# title: A data source demands that nothing is kept
deny contains violation if {
	"zero_retention" in input.workload.data.obligations
	input.pool.retention_days > 0
	violation := {"rule": "zero_retention_owed", "observed": input.pool.retention_days, "required": 0}
}

# METADATA
# title: The provider trains on data and the tenant does not allow it
deny contains violation if {
	input.pool.trains_on_data != false
	input.tenant.training_allowed != true
	violation := {"rule": "training_not_allowed", "observed": true, "required": false}
}

# METADATA
# title: The provider trains on data that nobody may train on
deny contains violation if {
	input.pool.trains_on_data != false
	not trainable
	violation := {
		"rule": "training_on_protected_data",
		"observed": {
			"classification": input.workload.data.classification,
			"categories": input.workload.data.categories,
		},
		"required": training_classifications,
	}
}

default training_classifications := []

training_classifications := data.settings.data_terms.training_classifications

trainable if {
	input.workload.data.classification in training_classifications
	count(untrainable) == 0
}

untrainable contains category if {
	some category in input.workload.data.categories
	category in data.settings.data_terms.never_train_categories
}

obligation contains {"name": name, "value": true} if some name in input.workload.data.obligations
