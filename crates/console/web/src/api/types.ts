// The JSON of the REST API: the messages of berth.v1 with the names of their protos.
// Times are RFC 3339, durations are seconds with an "s", unset values are null.

export type SessionStatus = "pending" | "active" | "idle" | "closed" | "failed" | "unspecified";

export interface Usage {
  rpcs: number;
  bytes_in: number;
  bytes_out: number;
  open_stream_seconds: number;
  warm_seconds: number;
}

export interface Policy {
  idle_timeout: string | null;
  close_after_idle: string | null;
  max_lifetime: string | null;
  provisioning_deadline: string | null;
  on_idle: string;
}

export interface Session {
  id: string;
  org: string;
  owner: string;
  name: string;
  team: string;
  labels: Record<string, string>;
  cluster: string;
  catalog: string;
  profile: string;
  status: SessionStatus;
  phase: string;
  reason: string;
  status_message: string;
  status_detail: string;
  version: number;
  generation: number;
  token_epoch: number;
  created_at: string | null;
  active_at: string | null;
  last_activity_at: string | null;
  idle_since: string | null;
  closed_at: string | null;
  idle_at: string | null;
  closes_at: string | null;
  expires_at: string | null;
  keep_alive_until: string | null;
  active_operations: number;
  engine: string;
  engine_version: string;
  usage: Usage | null;
  policy: Policy | null;
}

export interface SessionEvent {
  version: number;
  at: string | null;
  from: SessionStatus;
  to: SessionStatus;
  phase: string;
  generation: number;
  reason: string;
  actor: string;
  message: string;
}

export interface AuditRecord {
  at: string | null;
  action: string;
  outcome: string;
  reason: string;
  actor: string;
  address: string;
  org: string;
  session_id: string;
  token_id: string;
  object: string;
  from: SessionStatus;
  to: SessionStatus;
  version: number;
  unreplicated: boolean;
}

export interface UsageRow {
  owner: string;
  cluster: string;
  sessions: number;
  live_sessions: number;
  usage: Usage | null;
}

export interface Operation {
  operation_id: string;
  spark_session_id: string;
  method: string;
  started_at: string | null;
}

export interface IssuedToken {
  token: string;
  token_id: string;
  issued_at: string | null;
  expires_at: string | null;
  grpc_endpoint: string;
  connection_url: string;
}

export interface SessionToken {
  token_id: string;
  key_id: string;
  subject: string;
  issued_at: string | null;
  expires_at: string | null;
  first_used_at: string | null;
  last_used_at: string | null;
  revoked: boolean;
}

export interface ClusterProfile {
  name: string;
  cpu: string;
  memory: string;
  default: boolean;
}

export interface WarmPool {
  catalog: string;
  available: number;
  starting: number;
  stopped: string;
}

export interface Cluster {
  name: string;
  status: "pending" | "active" | "draining" | "destroyed" | "unspecified";
  engine: string;
  engine_version: string;
  client_versions: string[];
  granted_orgs: string[];
  /** By its kind; only platform admins see it. */
  provider: Record<string, ({ warm_pools?: WarmPool[] } & Record<string, unknown>) | null> | null;
  idle_policy: string;
  idle_timeout: string | null;
  close_after_idle: string | null;
  max_lifetime: string | null;
  provisioning_deadline: string | null;
  managed_by_config: boolean;
  version: number;
  wake: string;
  profiles: ClusterProfile[];
}

export interface Catalog {
  name: string;
  org: string;
  default_database: string;
  engine: string;
  properties: Record<string, string | string[] | null>;
  allowed_teams: string[];
  managed_by_config: boolean;
  version: number;
}

export interface Limits {
  live_sessions_per_owner: number;
  live_sessions: number;
  creates_per_minute: number;
  labels: number;
  tokens_per_session: number;
}

export interface Org {
  name: string;
  disabled: boolean;
  limits: Limits | null;
  managed_by_config: boolean;
  version: number;
  disabled_principals: string[];
}

export interface Principal {
  kind?: string;
  id?: string;
  name?: string;
  organization?: string;
  roles?: string[];
  teams?: string[];
}

export interface SignInMethod {
  id: string;
  label?: string;
}

export interface Installation {
  proxy_host?: string;
  proxy_port?: number;
  proxy_tls?: boolean;
  proxy_ca?: boolean;
  version?: string;
}

/** The answer of `auth/session`: who is signed in, and how to sign in. */
export interface AuthSession {
  signed_in: boolean;
  principal: Principal | null;
  expires_at: string | null;
  methods: SignInMethod[];
  installation: Installation;
}
