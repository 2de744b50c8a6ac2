// A real OpenID provider for the end-to-end tests: oidc-provider with client
// credentials, whose access tokens are JWTs. `node provider.mjs PORT`.
//
// Each client's tokens carry the claims of its entry below. POST /test/rotate
// signs with a new key from then on; the earlier one stays published.
import { generateKeyPairSync, randomUUID } from 'node:crypto';
import { createServer } from 'node:http';
import Provider from 'oidc-provider';

const port = Number(process.argv[2]);
const issuer = `http://127.0.0.1:${port}`;

const groupIds = (count) => Array.from({ length: count }, () => randomUUID());

const claims = {
  ada: { org: 'acme', roles: ['member'], groups: ['data'] },
  olga: { org: 'acme', roles: ['member', 'org-admin', 'platform-admin'] },
  mallory: { org: 'umbrella', roles: ['org-admin'] },
  etl: {},
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
    clients: Object.keys(claims).map((client_id) => ({
      client_id,
      client_secret: `${client_id}-secret`,
      grant_types: ['client_credentials'],
      redirect_uris: [],
      response_types: [],
      id_token_signed_response_alg: alg,
    })),
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
}

keys.unshift(newKey('rsa'));
start();
createServer((request, response) => {
  if (request.method === 'POST' && request.url === '/test/rotate') {
    keys.unshift(newKey('ec'));
    start();
    response.end('rotated');
  } else {
    serve(request, response);
  }
}).listen(port, '127.0.0.1');
