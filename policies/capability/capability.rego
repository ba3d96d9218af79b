# METADATA
# title: The hardware can run the model and is what was asked for
# description: Context length, free capacity and commitments are checked by the core, exactly, after the sheet.
# custom:
#   enforcement: hard
#   owner: platform
#   remedy: choose a pool with the hardware that the workload needs, or ask for less
package placement.capability

# METADATA
# title: The accelerator is not among those asked for
deny contains violation if {
	count(input.workload.resources.accelerators) > 0
	not input.pool.accelerator.name in input.workload.resources.accelerators
	violation := {
		"rule": "accelerator_not_accepted",
		"observed": input.pool.accelerator.name,
		"required": input.workload.resources.accelerators,
	}
}

# METADATA
# title: The pool has fewer GPUs than asked for
deny contains violation if {
	input.pool.gpu_count < input.workload.resources.gpu_count
	violation := {
		"rule": "too_few_gpus",
		"observed": input.pool.gpu_count,
		"required": input.workload.resources.gpu_count,
	}
}

# METADATA
# title: One replica has less GPU memory than the model needs
deny contains violation if {
	not hidden_hardware
	input.serving.memory_gib < input.model.memory_gib
	violation := {
		"rule": "model_does_not_fit",
		"observed": input.serving.memory_gib,
		"required": input.model.memory_gib,
	}
}

# METADATA
# title: One replica has less GPU memory than asked for
deny contains violation if {
	input.serving.memory_gib < input.workload.resources.gpu_memory_gib
	violation := {
		"rule": "too_little_gpu_memory",
		"observed": input.serving.memory_gib,
		"required": input.workload.resources.gpu_memory_gib,
	}
}

# Such a provider promises the model, not the memory; whoever asks for GPUs or memory is still refused.
hidden_hardware if input.pool.kind in data.settings.capability.hidden_hardware_kinds
