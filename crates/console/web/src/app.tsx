// The frame of the console: navigation, the present page, notices.
import { useEffect, useState } from "preact/hooks";
import { auth, isOrgAdmin, refreshAuth } from "./state/auth.ts";
import { navigate, place, type Place } from "./state/router.ts";
import { useStore } from "./state/store.ts";
import { Failure, Loading, Link, PageHeading, Empty } from "./ui/basics.tsx";
import { Icon } from "./ui/icon.tsx";
import { Navigation } from "./ui/navigation.tsx";
import { Notices } from "./ui/notices.tsx";
import { SignInPage } from "./pages/sign_in.tsx";
import { SessionsPage } from "./sessions/list_page.tsx";
import { CreatePage } from "./sessions/create_page.tsx";
import { SessionPage } from "./session/page.tsx";
import { ClustersPage } from "./admin/clusters.tsx";
import { ClusterPage } from "./admin/cluster.tsx";
import { CatalogsPage } from "./admin/catalogs.tsx";
import { CatalogPage } from "./admin/catalog.tsx";
import { OrganizationPage } from "./admin/organization.tsx";
import { EditClusterPage, NewClusterPage } from "./forms/cluster_form.tsx";
import { EditCatalogPage, NewCatalogPage } from "./forms/catalog_form.tsx";
import { UsagePage } from "./admin/usage.tsx";
import { AuditPage } from "./admin/audit.tsx";

export function App() {
  const who = useStore(auth);
  if (who.state === "loading") {
    return (
      <main class="alone">
        <Loading what="the console" />
      </main>
    );
  }
  if (who.state === "unreachable") {
    return (
      <main class="alone">
        <Failure error={new Error(who.message)} what="the console" retry={() => void refreshAuth()} />
      </main>
    );
  }
  if (who.state === "out") {
    return (
      <>
        <SignInPage session={who.session} expired={who.expired} />
        <Notices />
      </>
    );
  }
  return <Frame />;
}

function Frame() {
  const where = useStore(place);
  const [open, setOpen] = useState(false);
  useEffect(() => setOpen(false), [where.path]);
  useEffect(() => {
    if (where.path === "" || where.path === "sign-in") navigate("sessions", true);
  }, [where.path]);
  return (
    <div class="frame">
      <a
        class="skip"
        href="#content"
        onClick={(event) => {
          event.preventDefault();
          document.getElementById("content")?.focus();
        }}
      >
        Skip to content
      </a>
      <header class="top">
        <button type="button" class="button quiet only-icon" aria-expanded={open ? "true" : "false"} aria-controls="sidebar" aria-label="Menu" onClick={() => setOpen(!open)}>
          <Icon name={open ? "close" : "menu"} size={20} />
        </button>
        <Link to="sessions" class="brand">
          Berth
        </Link>
      </header>
      <Navigation open={open} path={where.path} />
      <main id="content" tabIndex={-1}>
        <Page key={where.path} place={where} />
      </main>
      <Notices />
    </div>
  );
}

/** The decoded parts of a path; one that is not encoded properly names no page. */
function partsOf(path: string): string[] {
  try {
    return path.split("/").map(decodeURIComponent);
  } catch {
    return ["not-found"];
  }
}

function Page(props: { place: Place }) {
  const [section, name, more, rest] = partsOf(props.place.path);
  if (more === undefined) {
    if (section === "sessions") {
      if (name === undefined) return <SessionsPage />;
      return name === "new" ? <CreatePage /> : <SessionPage id={name} />;
    }
    if (section === "clusters") return name === undefined ? <ClustersPage /> : <ClusterPage name={name} />;
    if (section === "catalogs") return name === undefined ? <CatalogsPage /> : <CatalogPage name={name} />;
    if (section === "organization") return <OrganizationPage name={name} />;
    if (section === "usage" && name === undefined) return <UsagePage />;
    if (section === "audit" && name === undefined && isOrgAdmin()) return <AuditPage />;
    if (section === "new-cluster" && name === undefined) return <NewClusterPage />;
    if (section === "new-catalog" && name === undefined) return <NewCatalogPage />;
  }
  if (more === "edit" && rest === undefined && name !== undefined) {
    if (section === "clusters") return <EditClusterPage name={name} />;
    if (section === "catalogs") return <EditCatalogPage name={name} />;
  }
  if (section === "" || section === "sign-in") return null;
  return (
    <>
      <PageHeading title="Page not found" />
      <Empty icon="search" title="There is no page at this address" action={<Link class="button primary" to="sessions">Go to Sessions</Link>}>
        Check the address, or continue with your sessions.
      </Empty>
    </>
  );
}
