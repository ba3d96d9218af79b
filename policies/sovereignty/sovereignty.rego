# METADATA
# title: No foreign law reaches the data
# description: Residency asks where data is; sovereignty asks who can be compelled to hand it over.
# custom:
#   enforcement: hard
#   owner: legal
#   remedy: choose a pool whose operator and its parent are seated in a permitted country
package placement.sovereignty

# METADATA
# title: An operator, parent or sub-processor is seated outside the permitted seats
deny contains violation if {
	not input.tenant.foreign_control in {"soft", "off"}
	some observed in foreign
	violation := {"rule": "foreign_control", "observed": observed, "required": input.tenant.permitted_seats}
}

# METADATA
# title: An operator, parent or sub-processor is seated outside the permitted seats (waivable for this tenant)
# custom:
#   enforcement: soft
#   remedy: choose a pool under permitted control, or ask legal for a waiver with an end date
deny contains violation if {
	input.tenant.foreign_control == "soft"
	some observed in foreign
	violation := {"rule": "foreign_control_soft", "observed": observed, "required": input.tenant.permitted_seats}
}

# METADATA
# title: The provider only prefers the region, so classified data may be served elsewhere
# custom:
#   remedy: choose a pool whose provider enforces the region, by contract or by architecture
deny contains violation if {
	classified
	input.pool.region_binding != "enforced"
	violation := {
		"rule": "region_not_enforced",
		"observed": {"region_binding": input.pool.region_binding, "classification": input.workload.data.classification},
		"required": "enforced",
	}
}

# METADATA
# title: A sub-processor works on classified data in a country that is not permitted
# custom:
#   remedy: choose a pool without this sub-processor, or have the provider exclude it by contract
deny contains violation if {
	classified
	outside := [{"name": processor.name, "countries": foreign} |
		some processor in input.pool.sub_processors
		foreign := [country | some country in processor.countries; not country in input.workload.data.permitted_countries]
		count(foreign) > 0
	]
	count(outside) > 0
	violation := {
		"rule": "sub_processor_location_not_permitted",
		"observed": outside,
		"required": input.workload.data.permitted_countries,
	}
}

classified if not open

open if input.workload.data.classification in data.settings.sovereignty.open_classifications

foreign contains seats if {
	seats := {role: seat |
		some role, seat in {"operator_seat": input.pool.operator.seat, "parent_seat": input.pool.operator.parent_seat}
		not seat in input.tenant.permitted_seats
	}
	count(seats) > 0
}

foreign contains {"sub_processors": seats} if {
	classified
	seats := [{"name": processor.name, "seat": processor.seat} |
		some processor in input.pool.sub_processors
		not processor.seat in input.tenant.permitted_seats
	]
	count(seats) > 0
}
