CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);

CREATE TABLE meta (
	"key" VARCHAR NOT NULL, 
	value VARCHAR NOT NULL, 
	PRIMARY KEY ("key")
);

CREATE TABLE word (
	number INTEGER NOT NULL, 
	text TEXT NOT NULL, 
	PRIMARY KEY (number), 
	UNIQUE (text)
);

CREATE TABLE entry (
	"index" INTEGER NOT NULL, 
	id BLOB NOT NULL, 
	kind INTEGER NOT NULL, 
	time_us INTEGER NOT NULL, 
	tenant INTEGER, 
	project INTEGER, 
	environment INTEGER, 
	principal INTEGER, 
	outcome INTEGER, 
	denied_by INTEGER, 
	pool INTEGER, 
	provider INTEGER, 
	country INTEGER, 
	model INTEGER, 
	model_version INTEGER, 
	classification INTEGER, 
	sla_class INTEGER, 
	mode INTEGER, 
	policy_commit INTEGER, 
	fleet_commit INTEGER, 
	sheet INTEGER, 
	request_id TEXT, 
	leaf_hash BLOB NOT NULL, 
	PRIMARY KEY ("index"), 
	UNIQUE (id)
);

CREATE INDEX entry_by_time ON entry (time_us);

CREATE INDEX entry_by_tenant ON entry (tenant, time_us);

CREATE INDEX entry_by_request ON entry (request_id) WHERE request_id IS NOT NULL;

CREATE TABLE body (
	"index" INTEGER NOT NULL, 
	body BLOB NOT NULL, 
	PRIMARY KEY ("index"), 
	FOREIGN KEY("index") REFERENCES entry ("index")
);

CREATE TABLE entry_term (
	field INTEGER NOT NULL, 
	value INTEGER NOT NULL, 
	"index" INTEGER NOT NULL, 
	PRIMARY KEY (field, value, "index"), 
	FOREIGN KEY("index") REFERENCES entry ("index")
)
 WITHOUT ROWID;

CREATE TABLE sheet_term (
	field INTEGER NOT NULL, 
	value INTEGER NOT NULL, 
	sheet INTEGER NOT NULL, 
	PRIMARY KEY (field, value, sheet)
)
 WITHOUT ROWID;

CREATE TABLE blob (
	digest VARCHAR NOT NULL, 
	kind VARCHAR NOT NULL, 
	encoding VARCHAR NOT NULL, 
	content BLOB NOT NULL, 
	PRIMARY KEY (digest)
);

CREATE TABLE idempotency (
	scope BLOB NOT NULL, 
	request BLOB NOT NULL, 
	decision TEXT NOT NULL, 
	expires_us BIGINT NOT NULL, 
	PRIMARY KEY (scope)
)
 WITHOUT ROWID;

CREATE INDEX ix_idempotency_expires_us ON idempotency (expires_us);

CREATE TABLE log (
	number INTEGER NOT NULL, 
	origin TEXT NOT NULL, 
	PRIMARY KEY (number), 
	UNIQUE (origin)
);

CREATE TABLE budget_account (
	number INTEGER NOT NULL, 
	path TEXT NOT NULL, 
	pools TEXT NOT NULL, 
	unit TEXT NOT NULL, 
	window TEXT NOT NULL, 
	start_us BIGINT NOT NULL, 
	end_us BIGINT, 
	"limit" BIGINT NOT NULL, 
	thresholds TEXT NOT NULL, 
	reserved BIGINT NOT NULL, 
	spent BIGINT NOT NULL, 
	leased BIGINT NOT NULL, 
	debt BIGINT NOT NULL, 
	sequence BIGINT NOT NULL, 
	crossed SMALLINT NOT NULL, 
	PRIMARY KEY (number), 
	CONSTRAINT budget_account_key UNIQUE (path, pools, unit, window, start_us), 
	CONSTRAINT budget_account_sound CHECK (reserved >= 0 AND spent >= 0 AND leased >= 0 AND debt >= 0 AND reserved + spent + leased <= "limit" + debt AND "limit" >= 0)
);

CREATE TABLE budget_hold (
	id BLOB NOT NULL, 
	state SMALLINT NOT NULL, 
	hold_us BIGINT NOT NULL, 
	expires_us BIGINT NOT NULL, 
	charges TEXT NOT NULL, 
	actual TEXT NOT NULL, 
	PRIMARY KEY (id)
)
 WITHOUT ROWID;

CREATE INDEX budget_hold_due ON budget_hold (expires_us) WHERE state = 0;

CREATE TABLE budget_time (
	log INTEGER NOT NULL, 
	last_us BIGINT NOT NULL, 
	PRIMARY KEY (log)
);

CREATE TABLE tree_node (
	log INTEGER NOT NULL, 
	level INTEGER NOT NULL, 
	"index" INTEGER NOT NULL, 
	hash BLOB NOT NULL, 
	PRIMARY KEY (log, level, "index")
)
 WITHOUT ROWID;

CREATE TABLE log_checkpoint (
	log INTEGER NOT NULL, 
	size INTEGER NOT NULL, 
	time_us INTEGER NOT NULL, 
	note BLOB NOT NULL, 
	PRIMARY KEY (log, size)
)
 WITHOUT ROWID;

CREATE TABLE proposal (
	id BLOB NOT NULL, 
	state SMALLINT NOT NULL, 
	action TEXT NOT NULL, 
	tenant TEXT, 
	digest TEXT NOT NULL, 
	time_us BIGINT NOT NULL, 
	expires_us BIGINT NOT NULL, 
	PRIMARY KEY (id)
)
 WITHOUT ROWID;

CREATE TABLE legal_hold (
	id BLOB NOT NULL, 
	state SMALLINT NOT NULL, 
	tenant TEXT NOT NULL, 
	token TEXT, 
	time_us BIGINT NOT NULL, 
	PRIMARY KEY (id)
)
 WITHOUT ROWID;

CREATE TABLE erasure (
	id BLOB NOT NULL, 
	token TEXT NOT NULL, 
	state SMALLINT NOT NULL, 
	time_us BIGINT NOT NULL, 
	PRIMARY KEY (id, token)
)
 WITHOUT ROWID;

CREATE INDEX ix_erasure_state ON erasure (state);

CREATE TABLE budget_limit (
	path TEXT NOT NULL, 
	pools TEXT NOT NULL, 
	unit TEXT NOT NULL, 
	window TEXT NOT NULL, 
	amount BIGINT, 
	zone TEXT NOT NULL, 
	thresholds TEXT, 
	changed BIGINT NOT NULL, 
	PRIMARY KEY (path, pools, unit, window), 
	CONSTRAINT budget_limit_sound CHECK (amount >= 0)
);

CREATE TABLE block (
	number INTEGER NOT NULL, 
	first_us INTEGER NOT NULL, 
	last_us INTEGER NOT NULL, 
	times_us BLOB NOT NULL, 
	PRIMARY KEY (number)
);

CREATE INDEX block_by_time ON block (last_us, number);

CREATE TABLE posting (
	field INTEGER NOT NULL, 
	value INTEGER NOT NULL, 
	block INTEGER NOT NULL, 
	offsets BLOB NOT NULL, 
	PRIMARY KEY (field, value, block)
)
 WITHOUT ROWID;

CREATE INDEX sheet_term_by_sheet ON sheet_term (sheet);

CREATE TABLE revision (
	kind SMALLINT NOT NULL, 
	digest TEXT NOT NULL, 
	label TEXT, 
	blob TEXT NOT NULL, 
	state SMALLINT NOT NULL, 
	verb SMALLINT NOT NULL, 
	said TEXT NOT NULL, 
	gates TEXT NOT NULL, 
	paused SMALLINT NOT NULL, 
	seen_us BIGINT NOT NULL, 
	since_us BIGINT NOT NULL, 
	served_us BIGINT NOT NULL, 
	version BIGINT NOT NULL, 
	PRIMARY KEY (kind, digest)
)
 WITHOUT ROWID;

CREATE TABLE waiver (
	id BLOB NOT NULL, 
	kind SMALLINT NOT NULL, 
	tenant TEXT NOT NULL, 
	project TEXT, 
	policy TEXT, 
	rule TEXT, 
	rule_digest TEXT, 
	pool TEXT, 
	model TEXT, 
	approval BLOB NOT NULL, 
	from_us BIGINT NOT NULL, 
	expires_us BIGINT NOT NULL, 
	PRIMARY KEY (id)
)
 WITHOUT ROWID;

INSERT INTO alembic_version VALUES ('0009');

