// Who is signed in.
import { send, whenSignedOut } from "../api/client.ts";
import type { AuthSession, Installation, Principal } from "../api/types.ts";
import { Store } from "./store.ts";

export type Auth =
  | { state: "loading" }
  | { state: "unreachable"; message: string }
  | { state: "out"; expired: boolean; session: AuthSession }
  | { state: "in"; session: AuthSession; principal: Principal };

export const auth = new Store<Auth>({ state: "loading" });

/** Asks the server who is signed in. */
export async function refreshAuth(): Promise<void> {
  const before = auth.get();
  try {
    const { data } = await send<AuthSession>("GET", "auth/session");
    if (data.signed_in) auth.set({ state: "in", session: data, principal: data.principal ?? {} });
    else auth.set({ state: "out", expired: before.state === "in", session: data });
  } catch (error) {
    auth.set({ state: "unreachable", message: error instanceof Error ? error.message : String(error) });
  }
}

export async function signIn(key: string): Promise<void> {
  await send("POST", "auth/key", { body: { key } });
  await refreshAuth();
}

export async function signOut(): Promise<void> {
  await send("POST", "auth/logout");
  const { data } = await send<AuthSession>("GET", "auth/session");
  auth.set({ state: "out", expired: false, session: data });
}

// A credential that was accepted and is rejected now has expired or was withdrawn.
whenSignedOut(() => {
  const now = auth.get();
  if (now.state !== "in") return;
  const session = { ...now.session, signed_in: false, principal: null };
  auth.set({ state: "out", expired: true, session });
});

export function principal(): Principal {
  const now = auth.get();
  return now.state === "in" ? now.principal : {};
}

export function installation(): Installation {
  const now = auth.get();
  return now.state === "in" || now.state === "out" ? now.session.installation : {};
}

function hasRole(pattern: RegExp): boolean {
  return (principal().roles ?? []).some((role) => pattern.test(role));
}

/** Whether the caller may administer the installation. Only hides controls: the API decides. */
export function isPlatformAdmin(): boolean {
  return hasRole(/^platform[-_]?admin/i);
}

/** Whether the caller may write the catalogs of its organization. */
export function mayWriteCatalogs(): boolean {
  return hasRole(/^org[-_]?admin/i);
}

/** Whether the caller may administer its organization. */
export function isOrgAdmin(): boolean {
  return isPlatformAdmin() || hasRole(/^org[-_]?admin/i);
}

/** The id of the caller as sessions name their owner. */
export function myId(): string {
  return principal().id ?? principal().name ?? "";
}
