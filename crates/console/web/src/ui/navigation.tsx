// The sidebar; a menu on narrow screens.
import { installation, isOrgAdmin, principal, signOut } from "../state/auth.ts";
import { errorText, notify } from "../state/notices.ts";
import { person } from "../format.ts";
import { Button, Link } from "./basics.tsx";
import { Icon, type IconName } from "./icon.tsx";

const PAGES: [path: string, name: string, icon: IconName, admins?: boolean][] = [
  ["sessions", "Sessions", "sessions"],
  ["clusters", "Clusters", "clusters"],
  ["catalogs", "Catalogs", "catalogs"],
  ["organization", "Organization", "org"],
  ["usage", "Usage", "usage"],
  ["audit", "Audit", "audit", true],
];

export function Navigation(props: { open: boolean; path: string }) {
  const who = principal();
  const section = props.path.split("/")[0];
  const version = installation().version;
  return (
    <aside id="sidebar" aria-label="Sidebar" class={`sidebar${props.open ? " open" : ""}`}>
      <div class="sidebar-content">
      <Link to="sessions" class="brand">
        <Mark /> Berth
      </Link>
      <nav aria-label="Main">
        <ul>
          {PAGES.filter(([, , , admins]) => !admins || isOrgAdmin()).map(([path, name, icon]) => (
            <li key={path}>
              <Link to={path} current={section === path || `${section}s` === `new-${path}`}>
                <Icon name={icon} size={18} />
                {name}
              </Link>
            </li>
          ))}
        </ul>
      </nav>
      <div class="who">
        <div class="who-name" title={who.id ?? who.name}>
          {person(who.name ?? who.id ?? "Signed in")}
        </div>
        <div class="muted">
          {[who.organization, (who.roles ?? []).filter((role) => role !== "member").map(roleName).join(", ")].filter(Boolean).join(" · ")}
        </div>
        <Button small icon="out" onClick={() => signOut().catch((error) => notify("error", errorText(error)))}>
          Sign out
        </Button>
        {version ? <div class="muted version">Berth {version}</div> : null}
      </div>
      </div>
    </aside>
  );
}

function roleName(role: string): string {
  return role.replaceAll(/[-_]/g, " ");
}

/** The mark of Berth: a mooring. */
export function Mark(props: { size?: number }) {
  return (
    <svg class="mark" viewBox="0 0 32 32" width={props.size ?? 28} height={props.size ?? 28} aria-hidden="true" focusable="false">
      <rect width="32" height="32" rx="8" />
      <path d="M8 12h3v7a5 5 0 0 0 10 0v-7h3" />
      <circle cx="16" cy="11" r="2.6" />
    </svg>
  );
}
