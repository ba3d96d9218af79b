package placement.capability_test

import data.placement.capability

denied(given) := deny if {
	deny := capability.deny with input.workload as given.workload with input.model as given.model with input.pool as given.pool with input.serving as given.serving
}

denied_without_settings(given) := deny if {
	deny := capability.deny with input.workload as given.workload with input.model as given.model with input.pool as given.pool with input.serving as given.serving with data.settings as {}
}

rules(given) := {violation.rule | some violation in denied(given)}

# A replica of two H100 on an eight-GPU pool; the model needs 140 GiB.
document(resources, pool, serving) := {
	"workload": {"resources": object.union({"accelerators": [], "gpu_count": 0, "gpu_memory_gib": 0}, resources)},
	"model": {"memory_gib": 140},
	"pool": object.union(
		{"kind": "on_demand", "accelerator": {"name": "H100", "memory_gib": 80}, "gpu_count": 8},
		pool,
	),
	"serving": object.union({"memory_gib": 160}, serving),
}

hidden := {"kind": "api", "accelerator": {"name": "undisclosed", "memory_gib": 0}, "gpu_count": 0}

test_nothing_asked_for_is_quiet if rules(document({}, {}, {})) == set()

test_accelerators_are_alternatives if {
	rules(document({"accelerators": ["H100", "H200"]}, {}, {})) == set()
	denied(document({"accelerators": ["B200", "H200"]}, {}, {})) == {{
		"rule": "accelerator_not_accepted",
		"observed": "H100",
		"required": ["B200", "H200"],
	}}
}

test_gpu_count_is_a_lower_bound if {
	rules(document({"gpu_count": 8}, {}, {})) == set()
	rules(document({"gpu_count": 9}, {}, {})) == {"too_few_gpus"}
}

test_asked_memory_is_a_lower_bound_for_one_replica if {
	rules(document({"gpu_memory_gib": 160}, {}, {})) == set()
	rules(document({"gpu_memory_gib": 161}, {}, {})) == {"too_little_gpu_memory"}
}

test_the_model_must_fit_one_replica if {
	rules(document({}, {}, {"memory_gib": 140})) == set()
	denied(document({}, {}, {"memory_gib": 139})) == {{
		"rule": "model_does_not_fit",
		"observed": 139,
		"required": 140,
	}}
}

test_hidden_hardware_is_the_providers_business if rules(document({}, hidden, {"memory_gib": 0})) == set()

test_hidden_hardware_cannot_be_asked_for if {
	rules(document({"accelerators": ["H100"]}, hidden, {"memory_gib": 0})) == {"accelerator_not_accepted"}
	rules(document({"gpu_count": 1}, hidden, {"memory_gib": 0})) == {"too_few_gpus"}
	rules(document({"gpu_memory_gib": 1}, hidden, {"memory_gib": 0})) == {"too_little_gpu_memory"}
}

test_only_apis_may_hide_hardware if {
	rules(document({}, object.union(hidden, {"kind": "serverless"}), {"memory_gib": 0})) == {"model_does_not_fit"}
}

test_without_settings_nobody_may_hide_hardware if {
	api := {"kind": "api", "accelerator": {"name": "undisclosed", "memory_gib": 0}, "gpu_count": 0}
	hiding := document({}, api, {"memory_gib": 0})
	deny := denied_without_settings(hiding)
	{violation.rule | some violation in deny} == {"model_does_not_fit"}
}
