CREATE EXTENSION IF NOT EXISTS "uuid-ossp";

CREATE TABLE IF NOT EXISTS alembic_version (
    version_num varchar(32) NOT NULL CONSTRAINT alembic_version_pkc PRIMARY KEY
);

CREATE TABLE IF NOT EXISTS tenants (
    id uuid DEFAULT uuid_generate_v4() NOT NULL CONSTRAINT tenant_pkey PRIMARY KEY,
    name varchar(255) NOT NULL,
    status varchar(255) DEFAULT 'normal' NOT NULL,
    created_at timestamp DEFAULT CURRENT_TIMESTAMP(0) NOT NULL,
    updated_at timestamp DEFAULT CURRENT_TIMESTAMP(0) NOT NULL
);

CREATE TABLE IF NOT EXISTS apps (
    id uuid DEFAULT uuid_generate_v4() NOT NULL CONSTRAINT app_pkey PRIMARY KEY,
    tenant_id uuid NOT NULL,
    name varchar(255) NOT NULL,
    description text DEFAULT '' NOT NULL,
    mode varchar(255) NOT NULL,
    status varchar(255) DEFAULT 'normal' NOT NULL,
    enable_site boolean DEFAULT true NOT NULL,
    enable_api boolean DEFAULT true NOT NULL,
    workflow_id uuid,
    created_at timestamp DEFAULT CURRENT_TIMESTAMP(0) NOT NULL,
    updated_at timestamp DEFAULT CURRENT_TIMESTAMP(0) NOT NULL
);
CREATE INDEX IF NOT EXISTS app_tenant_id_idx ON apps (tenant_id);

CREATE TABLE IF NOT EXISTS app_dataset_joins (
    id uuid DEFAULT uuid_generate_v4() NOT NULL CONSTRAINT app_dataset_join_pkey PRIMARY KEY,
    app_id uuid NOT NULL,
    dataset_id uuid NOT NULL,
    created_at timestamp DEFAULT CURRENT_TIMESTAMP NOT NULL
);
CREATE INDEX IF NOT EXISTS app_dataset_join_app_dataset_idx ON app_dataset_joins (dataset_id, app_id);

CREATE TABLE IF NOT EXISTS api_tokens (
    id uuid DEFAULT uuid_generate_v4() NOT NULL CONSTRAINT api_token_pkey PRIMARY KEY,
    app_id uuid,
    tenant_id uuid,
    type varchar(16) NOT NULL,
    token varchar(255) NOT NULL,
    last_used_at timestamp,
    created_at timestamp DEFAULT CURRENT_TIMESTAMP(0) NOT NULL
);
CREATE INDEX IF NOT EXISTS api_token_app_id_type_idx ON api_tokens (app_id, type);
CREATE INDEX IF NOT EXISTS api_token_token_idx ON api_tokens (token, type);

CREATE TABLE IF NOT EXISTS end_users (
    id uuid DEFAULT uuid_generate_v4() NOT NULL CONSTRAINT end_user_pkey PRIMARY KEY,
    tenant_id uuid NOT NULL,
    app_id uuid,
    type varchar(255) NOT NULL,
    is_anonymous boolean DEFAULT true NOT NULL,
    session_id varchar(255) NOT NULL,
    created_at timestamp DEFAULT CURRENT_TIMESTAMP(0) NOT NULL,
    updated_at timestamp DEFAULT CURRENT_TIMESTAMP(0) NOT NULL
);
CREATE INDEX IF NOT EXISTS end_user_session_id_idx ON end_users (session_id, type);

CREATE TABLE IF NOT EXISTS conversations (
    id uuid DEFAULT uuid_generate_v4() NOT NULL CONSTRAINT conversation_pkey PRIMARY KEY,
    app_id uuid NOT NULL,
    mode varchar(255) NOT NULL,
    name varchar(255) NOT NULL,
    inputs json,
    introduction text,
    status varchar(255) NOT NULL,
    from_source varchar(255) NOT NULL,
    from_end_user_id uuid,
    is_deleted boolean DEFAULT false NOT NULL,
    created_at timestamp DEFAULT CURRENT_TIMESTAMP NOT NULL,
    updated_at timestamp DEFAULT CURRENT_TIMESTAMP NOT NULL
);
CREATE INDEX IF NOT EXISTS conversation_app_from_user_idx ON conversations (app_id, from_source, from_end_user_id);

CREATE TABLE IF NOT EXISTS messages (
    id uuid DEFAULT uuid_generate_v4() NOT NULL CONSTRAINT message_pkey PRIMARY KEY,
    app_id uuid NOT NULL,
    model_provider varchar(255),
    model_id varchar(255),
    conversation_id uuid NOT NULL,
    inputs json,
    query text NOT NULL,
    message json NOT NULL,
    message_tokens integer DEFAULT 0 NOT NULL,
    answer text NOT NULL,
    answer_tokens integer DEFAULT 0 NOT NULL,
    provider_response_latency double precision DEFAULT 0 NOT NULL,
    total_price numeric(10,7),
    currency varchar(255) NOT NULL,
    from_source varchar(255) NOT NULL,
    from_end_user_id uuid,
    workflow_run_id uuid,
    status varchar(255) DEFAULT 'normal' NOT NULL,
    error text,
    message_metadata text,
    created_at timestamp DEFAULT CURRENT_TIMESTAMP NOT NULL,
    updated_at timestamp DEFAULT CURRENT_TIMESTAMP NOT NULL
);
CREATE INDEX IF NOT EXISTS message_conversation_id_idx ON messages (conversation_id);
CREATE INDEX IF NOT EXISTS message_app_id_idx ON messages (app_id, created_at);

CREATE TABLE IF NOT EXISTS message_feedbacks (
    id uuid DEFAULT uuid_generate_v4() NOT NULL CONSTRAINT message_feedback_pkey PRIMARY KEY,
    app_id uuid NOT NULL,
    conversation_id uuid NOT NULL,
    message_id uuid NOT NULL,
    rating varchar(255) NOT NULL,
    from_source varchar(255) NOT NULL,
    from_end_user_id uuid,
    created_at timestamp DEFAULT CURRENT_TIMESTAMP(0) NOT NULL,
    updated_at timestamp DEFAULT CURRENT_TIMESTAMP(0) NOT NULL
);
CREATE INDEX IF NOT EXISTS message_feedback_message_idx ON message_feedbacks (message_id, from_source);

CREATE TABLE IF NOT EXISTS datasets (
    id uuid DEFAULT uuid_generate_v4() NOT NULL CONSTRAINT dataset_pkey PRIMARY KEY,
    tenant_id uuid NOT NULL,
    name varchar(255) NOT NULL,
    description text,
    provider varchar(255) DEFAULT 'vendor' NOT NULL,
    permission varchar(255) DEFAULT 'only_me' NOT NULL,
    data_source_type varchar(255),
    indexing_technique varchar(255),
    index_struct text,
    embedding_model varchar(255),
    embedding_model_provider varchar(255),
    created_at timestamp DEFAULT CURRENT_TIMESTAMP NOT NULL,
    updated_at timestamp DEFAULT CURRENT_TIMESTAMP NOT NULL
);
CREATE INDEX IF NOT EXISTS dataset_tenant_idx ON datasets (tenant_id);

CREATE TABLE IF NOT EXISTS documents (
    id uuid DEFAULT uuid_generate_v4() NOT NULL CONSTRAINT document_pkey PRIMARY KEY,
    tenant_id uuid NOT NULL,
    dataset_id uuid NOT NULL,
    position integer NOT NULL,
    data_source_type varchar(255) NOT NULL,
    data_source_info text,
    batch varchar(255) NOT NULL,
    name varchar(255) NOT NULL,
    created_from varchar(255) NOT NULL,
    created_by uuid NOT NULL,
    created_at timestamp DEFAULT CURRENT_TIMESTAMP NOT NULL,
    processing_started_at timestamp,
    word_count integer,
    parsing_completed_at timestamp,
    cleaning_completed_at timestamp,
    splitting_completed_at timestamp,
    tokens integer,
    indexing_latency double precision,
    completed_at timestamp,
    paused_at timestamp,
    error text,
    stopped_at timestamp,
    indexing_status varchar(255) DEFAULT 'waiting' NOT NULL,
    enabled boolean DEFAULT true NOT NULL,
    archived boolean DEFAULT false NOT NULL,
    updated_at timestamp DEFAULT CURRENT_TIMESTAMP NOT NULL,
    doc_type varchar(40),
    doc_metadata json,
    doc_form varchar(255) DEFAULT 'text_model' NOT NULL
);
CREATE INDEX IF NOT EXISTS document_dataset_id_idx ON documents (dataset_id);

CREATE TABLE IF NOT EXISTS document_segments (
    id uuid DEFAULT uuid_generate_v4() NOT NULL CONSTRAINT document_segment_pkey PRIMARY KEY,
    tenant_id uuid NOT NULL,
    dataset_id uuid NOT NULL,
    document_id uuid NOT NULL,
    position integer NOT NULL,
    content text NOT NULL,
    answer text,
    word_count integer NOT NULL,
    tokens integer NOT NULL,
    keywords json,
    index_node_id varchar(255),
    index_node_hash varchar(255),
    hit_count integer DEFAULT 0 NOT NULL,
    enabled boolean DEFAULT true NOT NULL,
    disabled_at timestamp,
    status varchar(255) DEFAULT 'waiting' NOT NULL,
    created_by uuid NOT NULL,
    created_at timestamp DEFAULT CURRENT_TIMESTAMP NOT NULL,
    indexing_at timestamp,
    completed_at timestamp,
    error text,
    stopped_at timestamp
);
CREATE INDEX IF NOT EXISTS document_segment_document_id_idx ON document_segments (document_id);
CREATE INDEX IF NOT EXISTS document_segment_dataset_node_idx ON document_segments (dataset_id, index_node_id);

CREATE TABLE IF NOT EXISTS dataset_queries (
    id uuid DEFAULT uuid_generate_v4() NOT NULL CONSTRAINT dataset_query_pkey PRIMARY KEY,
    dataset_id uuid NOT NULL,
    content text NOT NULL,
    source varchar(255) NOT NULL,
    source_app_id uuid,
    created_by_role varchar NOT NULL,
    created_by uuid NOT NULL,
    created_at timestamp DEFAULT CURRENT_TIMESTAMP NOT NULL
);
CREATE INDEX IF NOT EXISTS dataset_query_dataset_id_idx ON dataset_queries (dataset_id);

CREATE TABLE IF NOT EXISTS upload_files (
    id uuid DEFAULT uuid_generate_v4() NOT NULL CONSTRAINT upload_file_pkey PRIMARY KEY,
    tenant_id uuid NOT NULL,
    storage_type varchar(255) NOT NULL,
    key varchar(255) NOT NULL,
    name varchar(255) NOT NULL,
    size integer NOT NULL,
    extension varchar(255) NOT NULL,
    mime_type varchar(255),
    created_by_role varchar(255) DEFAULT 'end_user' NOT NULL,
    created_by uuid NOT NULL,
    created_at timestamp DEFAULT CURRENT_TIMESTAMP NOT NULL,
    used boolean DEFAULT false NOT NULL,
    hash varchar(255)
);

CREATE TABLE IF NOT EXISTS workflow_runs (
    id uuid DEFAULT uuid_generate_v4() NOT NULL CONSTRAINT workflow_run_pkey PRIMARY KEY,
    tenant_id uuid NOT NULL,
    app_id uuid NOT NULL,
    sequence_number integer NOT NULL,
    workflow_id uuid NOT NULL,
    type varchar(255) NOT NULL,
    triggered_from varchar(255) NOT NULL,
    version varchar(255) NOT NULL,
    graph text,
    inputs text,
    status varchar(255) NOT NULL,
    outputs text,
    error text,
    elapsed_time double precision DEFAULT 0 NOT NULL,
    total_tokens integer DEFAULT 0 NOT NULL,
    total_steps integer DEFAULT 0,
    created_by_role varchar(255) NOT NULL,
    created_by uuid NOT NULL,
    created_at timestamp DEFAULT CURRENT_TIMESTAMP NOT NULL,
    finished_at timestamp
);
CREATE INDEX IF NOT EXISTS workflow_run_triggerd_from_idx ON workflow_runs (tenant_id, app_id, triggered_from);

CREATE TABLE IF NOT EXISTS workflow_node_executions (
    id uuid DEFAULT uuid_generate_v4() NOT NULL CONSTRAINT workflow_node_execution_pkey PRIMARY KEY,
    tenant_id uuid NOT NULL,
    app_id uuid NOT NULL,
    workflow_id uuid NOT NULL,
    triggered_from varchar(255) NOT NULL,
    workflow_run_id uuid,
    index integer NOT NULL,
    predecessor_node_id varchar(255),
    node_id varchar(255) NOT NULL,
    node_type varchar(255) NOT NULL,
    title varchar(255) NOT NULL,
    inputs text,
    outputs text,
    status varchar(255) NOT NULL,
    error text,
    elapsed_time double precision DEFAULT 0 NOT NULL,
    execution_metadata text,
    created_at timestamp DEFAULT CURRENT_TIMESTAMP NOT NULL,
    created_by_role varchar(255) NOT NULL,
    created_by uuid NOT NULL,
    finished_at timestamp
);
CREATE INDEX IF NOT EXISTS workflow_node_execution_workflow_run_idx ON workflow_node_executions (tenant_id, app_id, workflow_id, triggered_from, workflow_run_id);

CREATE SEQUENCE IF NOT EXISTS task_id_sequence;
CREATE TABLE IF NOT EXISTS celery_taskmeta (
    id integer DEFAULT nextval('task_id_sequence') NOT NULL PRIMARY KEY,
    task_id varchar(155) UNIQUE,
    status varchar(50),
    result bytea,
    date_done timestamp,
    traceback text,
    name varchar(155),
    args bytea,
    kwargs bytea,
    worker varchar(155),
    retries integer,
    queue varchar(155)
);
