# METADATA
# title: Data stays inside the countries it is permitted in
# description: Every place where data or weights may be is tested, and the evidence for those places must still count.
# custom:
#   enforcement: hard
#   owner: data-protection
#   remedy: choose a pool whose every location is permitted, or have the data reclassified by its owner
package placement.residency

# METADATA
# title: A location of the pool is outside the permitted countries
deny contains violation if {
	count(foreign) > 0
	outside := {aspect: found |
		some aspect, countries in input.pool.locations
		found := [country | some country in countries; country in foreign]
		count(found) > 0
	}
	violation := {
		"rule": "location_not_permitted",
		"observed": outside,
		"required": input.workload.data.permitted_countries,
	}
}

# METADATA
# title: The pool names no country for a location
# custom:
#   remedy: have the provider state where this happens, and enter it in the fleet with its source
deny contains violation if {
	some aspect, countries in input.pool.locations
	count(countries) == 0
	violation := {"rule": "location_unstated", "observed": {aspect: []}, "required": "at least one country"}
}

# METADATA
# title: The evidence for the pool's facts has expired
# custom:
#   remedy: check the pool's facts again and enter the new date of expiry
deny contains violation if {
	input.pool.evidence.expires < input.clock.date
	violation := {
		"rule": "evidence_expired",
		"observed": input.pool.evidence.expires,
		"required": input.clock.date,
	}
}

# Each country is looked up once, however many locations it stands for: the permitted list may name the whole world.
foreign := {country | some country in places; not country in input.workload.data.permitted_countries}

places := {country | some countries in input.pool.locations; some country in countries}
