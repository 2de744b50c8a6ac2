// The status of a session or cluster: a word with a shape, never a colour alone.
import type { Cluster, SessionStatus } from "../api/types.ts";
import { STATUS_NAMES } from "../words.ts";
import { Icon, type IconName } from "./icon.tsx";

const SESSION_ICONS: Record<SessionStatus, IconName> = {
  pending: "half",
  active: "check",
  idle: "moon",
  closed: "stop",
  failed: "warning",
  unspecified: "circle",
};

export function StatusBadge(props: { status: SessionStatus }) {
  return (
    <span class={`badge ${props.status}`}>
      <Icon name={SESSION_ICONS[props.status] ?? "circle"} size={13} />
      {STATUS_NAMES[props.status] ?? props.status}
    </span>
  );
}

const CLUSTER_WORDS: Record<Cluster["status"], [string, string, IconName]> = {
  active: ["active", "Active", "check"],
  pending: ["pending", "Not open yet", "half"],
  draining: ["idle", "Draining", "moon"],
  destroyed: ["closed", "Deleted", "stop"],
  unspecified: ["closed", "Unknown", "circle"],
};

export function ClusterBadge(props: { status: Cluster["status"] }) {
  const [tone, word, icon] = CLUSTER_WORDS[props.status] ?? CLUSTER_WORDS.unspecified;
  return (
    <span class={`badge ${tone}`}>
      <Icon name={icon} size={13} />
      {word}
    </span>
  );
}
