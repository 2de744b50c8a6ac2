// A real OpenID provider for the end-to-end tests: oidc-provider with client
// credentials, whose access tokens are JWTs, and with the code flow for the
// console. `node provider.mjs PORT [REDIRECT_URI]`.
//
// At the sign-in everybody is let in, as the person that `login_hint` names; without it,
// a page asks for the name.
//
// Each client's tokens carry the claims of its entry below. POST /test/rotate
// signs with a new key from then on; the earlier one stays published.
import { generateKeyPairSync, randomUUID } from 'node:crypto';
import { createServer } from 'node:http';
import Provider from 'oidc-provider';

const port = Number(process.argv[2]);
const redirectUri = process.argv[3];
const issuer = `http://127.0.0.1:${port}`;

const groupIds = (count) => Array.from({ length: count }, () => randomUUID());

const claims = {
  ada: { org: 'acme', roles: ['member'], groups: ['data'] },
  olga: { org: 'acme', roles: ['member', 'org-admin', 'platform-admin'] },
  mallory: { org: 'umbrella', roles: ['org-admin'] },
  etl: {},
  // People of the installation that the browser tests use.
  mia: { org: 'local', roles: ['member'] },
  lena: { org: 'local', roles: ['member', 'org-admin', 'platform-admin'] },
  // A member of very many groups: some 34 KiB, and more than is accepted.
  gina: { org: 'acme', roles: ['member'], groups: groupIds(630) },
  hugo: { org: 'acme', roles: ['member'], groups: groupIds(1100) },
};

// The resource that a token is asked for, its audience and its life.
const resources = {
  'urn:berth': { audience: 'berth', accessTokenTTL: 600 },
  'urn:other': { audience: 'other', accessTokenTTL: 600 },
  'urn:short': { audience: 'berth', accessTokenTTL: 1 },
};

const keys = [];
let serve;
let signIn;

function newKey(type) {
  const { privateKey } = type === 'ec'
    ? generateKeyPairSync('ec', { namedCurve: 'P-256' })
    : generateKeyPairSync('rsa', { modulusLength: 2048 });
  const alg = type === 'ec' ? 'ES256' : 'RS256';
  return { ...privateKey.export({ format: 'jwk' }), kid: randomUUID(), use: 'sig', alg };
}

function start() {
  const alg = keys[0].alg;
  const provider = new Provider(issuer, {
    jwks: { keys },
    clients: [...consoles(alg), ...Object.keys(claims).map((client_id) => ({
      client_id,
      client_secret: `${client_id}-secret`,
      grant_types: ['client_credentials'],
      redirect_uris: [],
      response_types: [],
      id_token_signed_response_alg: alg,
    }))],
    // ID tokens have the claims of the person, as those of most providers do.
    claims: { openid: ['sub', 'org', 'roles'] },
    conformIdTokenClaims: false,
    pkce: { required: () => true },
    interactions: { url: (_ctx, interaction) => `/sign-in/${interaction.uid}` },
    findAccount: (_ctx, sub) => ({ accountId: sub, claims: () => ({ sub, ...claims[sub] }) }),
    issueRefreshToken: (_ctx, client) => client.grantTypeAllowed('refresh_token'),
    features: {
      devInteractions: { enabled: false },
      clientCredentials: { enabled: true },
      resourceIndicators: {
        enabled: true,
        getResourceServerInfo: (_ctx, resource) => ({
          scope: 'berth',
          accessTokenFormat: 'jwt',
          jwt: { sign: { alg } },
          ...resources[resource],
        }),
      },
    },
    extraTokenClaims: (_ctx, token) => claims[token.clientId],
  });
  serve = provider.callback();
  signIn = (request, response) => letIn(provider, request, response);
}

function consoles(alg) {
  if (!redirectUri) return [];
  return [{
    client_id: 'console',
    client_secret: 'console-secret',
    grant_types: ['authorization_code', 'refresh_token'],
    redirect_uris: [redirectUri],
    response_types: ['code'],
    id_token_signed_response_alg: alg,
  }];
}

const FORM = '<!doctype html><title>Provider</title><form method="post"><label>Name <input name="name"></label><button>Continue</button></form>';

// The name in the form that a person sent.
async function nameIn(request) {
  if (request.method !== 'POST') return '';
  let body = '';
  for await (const part of request) body += part;
  return new URLSearchParams(body).get('name') ?? '';
}

// Signs the person in and grants what the client asks for.
async function letIn(provider, request, response) {
  const { params, prompt, session } = await provider.interactionDetails(request, response);
  if (prompt.name === 'login') {
    const accountId = params.login_hint ?? await nameIn(request);
    if (!accountId) {
      response.writeHead(200, { 'content-type': 'text/html' }).end(FORM);
      return;
    }
    await provider.interactionFinished(request, response, { login: { accountId } });
    return;
  }
  const grant = new provider.Grant({ accountId: session.accountId, clientId: params.client_id });
  grant.addOIDCScope(params.scope);
  const result = { consent: { grantId: await grant.save() } };
  await provider.interactionFinished(request, response, result, { mergeWithLastSubmission: true });
}

keys.unshift(newKey('rsa'));
start();
createServer((request, response) => {
  if (request.method === 'POST' && request.url === '/test/rotate') {
    keys.unshift(newKey('ec'));
    start();
    response.end('rotated');
  } else if (request.url.startsWith('/sign-in/')) {
    signIn(request, response).catch((error) => response.writeHead(500).end(String(error)));
  } else {
    serve(request, response);
  }
}).listen(port, '127.0.0.1');
