# METADATA
# title: The workload is separated from other customers as its tenant demands
# custom:
#   enforcement: hard
#   owner: security
#   remedy: choose a pool that is isolated at least as the tenant's floor says
package placement.isolation

# METADATA
# title: The pool is shared with more customers than the tenant accepts
deny contains violation if {
	not tenancy_suffices
	violation := {"rule": "tenancy_too_open", "observed": input.pool.tenancy, "required": input.tenant.tenancy}
}

# METADATA
# title: The pool is reached over a more public network than the tenant accepts
deny contains violation if {
	not network_suffices
	violation := {"rule": "network_too_open", "observed": input.pool.network, "required": input.tenant.network}
}

# METADATA
# title: The pool runs in an account that the tenant does not accept
deny contains violation if {
	not account_suffices
	violation := {"rule": "account_not_ours", "observed": input.pool.account, "required": input.tenant.account}
}

# METADATA
# title: The pool is dedicated to other tenants
# custom:
#   remedy: choose another pool, or ask its owner to admit this tenant
deny contains violation if {
	count(input.pool.dedicated_to) > 0
	not input.tenant.name in input.pool.dedicated_to
	violation := {"rule": "dedicated_to_others", "observed": input.pool.dedicated_to, "required": input.tenant.name}
}

# METADATA
# title: Restricted data would run beside other customers
# custom:
#   remedy: choose a single-tenant or dedicated pool
deny contains violation if {
	input.pool.tenancy == "shared"
	not may_share
	violation := {
		"rule": "shared_pool_for_restricted_data",
		"observed": {"tenancy": "shared", "classification": input.workload.data.classification},
		"required": "single_tenant",
	}
}

# METADATA
# title: The pool does not hold a certification that the tenant requires
# custom:
#   remedy: choose a certified pool, or enter the certificate with its date of expiry
deny contains violation if {
	some name in input.tenant.certifications
	not name in held
	violation := {"rule": "certification_missing", "observed": held, "required": name}
}

# METADATA
# title: A certification that the tenant requires has expired
# custom:
#   remedy: choose a pool whose certificate is in date, or enter the renewed one
deny contains violation if {
	some name in input.tenant.certifications
	name in held
	not name in in_date
	violation := {
		"rule": "certification_expired",
		"observed": {name: [held.expires | some held in input.pool.certifications; held.name == name]},
		"required": input.clock.date,
	}
}

tenancy_rank := {"shared": 0, "single_tenant": 1, "dedicated": 2}

network_rank := {"public": 0, "private": 1}

account_rank := {"provider": 0, "ours": 1}

# Helpers, so that a word which no table knows counts as too open instead of leaving the rule undefined.
tenancy_suffices if tenancy_rank[input.pool.tenancy] >= tenancy_rank[input.tenant.tenancy]

network_suffices if network_rank[input.pool.network] >= network_rank[input.tenant.network]

account_suffices if account_rank[input.pool.account] >= account_rank[input.tenant.account]

may_share if input.workload.data.classification in data.settings.isolation.shared_pool_classifications

held contains certification.name if some certification in input.pool.certifications

in_date contains certification.name if {
	some certification in input.pool.certifications
	certification.expires >= input.clock.date
}
