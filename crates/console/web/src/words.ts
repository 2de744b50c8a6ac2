// Statuses, phases and reasons in words.
import type { Session, SessionEvent, SessionStatus } from "./api/types.ts";
import { person } from "./format.ts";

export const STATUS_NAMES: Record<SessionStatus, string> = {
  pending: "Starting",
  active: "Active",
  idle: "Idle",
  closed: "Closed",
  failed: "Failed",
  unspecified: "Unknown",
};

const PHASES: Record<string, string> = {
  provisioning: "Starting compute",
  warming: "Waking up",
  restarting: "Replacing lost compute",
  ready: "Ready",
  kept: "Idle, compute is kept",
  releasing: "Idle, releasing compute",
  released: "Idle, compute released",
  ended: "Ended",
};

const REASONS: Record<string, string> = {
  CREATED: "Session created",
  COMPUTE_READY: "Compute answered a test query and is ready",
  COMPUTE_WAITING: "Waiting for compute",
  PROVISIONING_TIMEOUT: "Compute was not ready in time",
  PROVISIONING_FAILED: "Compute could not be started",
  COMPUTE_LOST: "Compute was lost and is replaced",
  RESTART_BUDGET_SPENT: "Compute was lost too often",
  CLOSE_REQUESTED: "Closed on request",
  MAX_LIFETIME: "Reached its end time",
  CLUSTER_DESTROYED: "An administrator deleted the cluster",
  UPDATED: "Name, labels or times were changed",
  TOKENS_REVOKED: "Tokens were revoked",
  SPARK_SESSION_RELEASED: "The oldest Spark session was ended to make room",
  CLIENT_NEWER: "A client is newer than the engine",
  CLOSING_SOON: "Closes within 5 minutes",
  IDLE_TIMEOUT: "Unused for its idle timeout",
  IDLE_RELEASED: "Compute of the idle session was released",
  ACTIVITY: "A call arrived while it was idle",
  WOKEN: "Woken up",
  WARM_FAILED: "Waking up failed",
  WARM_BUDGET_SPENT: "Waking up failed too often",
  IDLE_CLOSE: "Idle for too long",
  ORG_DISABLED: "The organization was disabled",
  OWNER_DISABLED: "The owner was disabled",
};

/** Actions of the audit trail, in the words of people. */
export const ACTIONS: Record<string, string> = {
  "session.created": "Session created",
  "session.changed": "Session changed",
  "token.issued": "Token issued",
  "token.first-used": "Token used for the first time",
  "token.revoked": "Token revoked",
  "tokens.revoked": "All tokens revoked",
  "operations.interrupted": "Operations interrupted",
  "cluster.created": "Cluster created",
  "cluster.updated": "Cluster changed",
  "cluster.drained": "Cluster drained",
  "cluster.deleted": "Cluster deleted",
  "catalog.created": "Catalog created",
  "catalog.updated": "Catalog changed",
  "catalog.deleted": "Catalog deleted",
  "catalog.tested": "Catalog tested",
  "org.created": "Organization created",
  "org.updated": "Organization changed",
  "org.disabled": "Organization disabled",
  "org.enabled": "Organization enabled",
  "principal.disabled": "Principal disabled",
  "principal.enabled": "Principal enabled",
  "caller.refused": "Sign-in not accepted",
};

export function actionName(action: string): string {
  return ACTIONS[action] ?? action;
}

export function phaseName(phase: string): string {
  return PHASES[phase] ?? phase;
}

export function reasonName(reason: string): string {
  return REASONS[reason] ?? reason;
}

/** One line under a status: why the session is in it. */
export function statusReason(session: Session): string {
  return session.status_message || reasonName(session.reason);
}

/** Why an ended session ended, in one sentence; `by` is the actor of the last event, if known. */
export function endSentence(session: Session, by = ""): string {
  const who = by ? ` by ${person(by)}` : "";
  const sentences: Record<string, string> = {
    CLOSE_REQUESTED: `It was closed${who || " on request"}.`,
    MAX_LIFETIME: "It reached its end time.",
    IDLE_CLOSE: "It was idle for longer than its limit.",
    CLUSTER_DESTROYED: `The cluster ${session.cluster} was deleted.`,
    ORG_DISABLED: `The organization ${session.org} was disabled${who}.`,
    OWNER_DISABLED: `Its owner was disabled${who}.`,
    PROVISIONING_TIMEOUT: "Its compute was not ready in time.",
    PROVISIONING_FAILED: "Its compute could not be started.",
    RESTART_BUDGET_SPENT: "Its compute was lost too often within 10 minutes.",
    WARM_BUDGET_SPENT: "Waking it up failed too often.",
  };
  return sentences[session.reason] ?? session.status_message ?? reasonName(session.reason);
}

/** What to do after a session ended. */
export function endAdvice(session: Session): string {
  switch (session.reason) {
    case "MAX_LIFETIME":
      return "Create a new session, with a longer lifetime if you need one.";
    case "PROVISIONING_TIMEOUT":
    case "PROVISIONING_FAILED":
    case "RESTART_BUDGET_SPENT":
    case "WARM_BUDGET_SPENT":
      return "Fix what the message names, then create a new session.";
    case "ORG_DISABLED":
    case "OWNER_DISABLED":
      return "Ask your administrator.";
    default:
      return "A closed session cannot be opened again; create a new one.";
  }
}

/** The text of a change in the phase log. */
export function eventText(event: SessionEvent): string {
  return event.message || reasonName(event.reason);
}
