// Sign-ins of people at a real OpenID provider, for the tests of `berth login`.
//
// `node login.mjs provider PORT`: oidc-provider with a public client for the
// command, device and browser flow, refresh tokens that rotate, revocation.
// `node login.mjs user URL`: a browser in short: follows redirects, keeps
// cookies and confirms what it is asked.
import { createServer } from 'node:http';
import { generateKeyPairSync, randomUUID } from 'node:crypto';

const account = 'ada';
const lifetime = Number(process.env.TOKEN_LIFETIME ?? 600);

async function provide(port) {
  const { default: Provider } = await import('oidc-provider');
  const issuer = `http://127.0.0.1:${port}`;
  const { privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  const key = { ...privateKey.export({ format: 'jwk' }), kid: randomUUID(), use: 'sig', alg: 'ES256' };
  const provider = new Provider(issuer, {
    jwks: { keys: [key] },
    clients: [{
      client_id: 'berth-cli',
      application_type: 'native',
      token_endpoint_auth_method: 'none',
      grant_types: ['authorization_code', 'refresh_token', 'urn:ietf:params:oauth:grant-type:device_code'],
      response_types: ['code'],
      redirect_uris: ['http://127.0.0.1/callback'],
      id_token_signed_response_alg: 'ES256',
    }],
    scopes: ['openid', 'offline_access', 'berth'],
    findAccount: (_ctx, id) => ({ accountId: id, claims: () => ({ sub: id }) }),
    cookies: { keys: [randomUUID()] },
    ttl: { AccessToken: lifetime, RefreshToken: 3600, DeviceCode: 60, Grant: 3600, Interaction: 600, Session: 600, IdToken: 600 },
    rotateRefreshToken: true,
    interactions: { url: (_ctx, interaction) => `/interaction/${interaction.uid}` },
    features: {
      devInteractions: { enabled: false },
      deviceFlow: { enabled: true },
      revocation: { enabled: true },
      resourceIndicators: {
        enabled: true,
        useGrantedResource: () => true,
        getResourceServerInfo: () => ({
          scope: 'berth', audience: 'berth', accessTokenTTL: lifetime,
          accessTokenFormat: 'jwt', jwt: { sign: { alg: 'ES256' } },
        }),
      },
    },
    extraTokenClaims: () => ({ org: 'acme', roles: ['member'] }),
  });
  const serve = provider.callback();
  createServer(async (request, response) => {
    if (!request.url.startsWith('/interaction/')) {
      serve(request, response);
      return;
    }
    const { prompt, params, grantId } = await provider.interactionDetails(request, response);
    if (prompt.name === 'login') {
      await provider.interactionFinished(request, response, { login: { accountId: account } });
      return;
    }
    const grant = grantId ? await provider.Grant.find(grantId)
      : new provider.Grant({ accountId: account, clientId: params.client_id });
    grant.addOIDCScope('openid offline_access berth');
    grant.addResourceScope('urn:berth', 'berth');
    const consent = { grantId: await grant.save() };
    await provider.interactionFinished(request, response, { consent }, { mergeWithLastSubmission: true });
  }).listen(port, '127.0.0.1');
}

async function use(start) {
  const jar = new Map();
  let next = { url: new URL(start), method: 'GET', body: undefined };
  for (let step = 0; step < 20; step += 1) {
    const response = await fetch(next.url, {
      method: next.method,
      body: next.body,
      redirect: 'manual',
      headers: { cookie: [...jar].map(([name, value]) => `${name}=${value}`).join('; ') },
    });
    for (const cookie of response.headers.getSetCookie()) {
      const [, name, value] = cookie.match(/^([^=]+)=([^;]*)/);
      if (value) jar.set(name, value); else jar.delete(name);
    }
    const location = response.headers.get('location');
    if (location) {
      next = { url: new URL(location, next.url), method: 'GET', body: undefined };
      continue;
    }
    const page = await response.text();
    const form = page.match(/<form[^>]*action="([^"]+)"/);
    if (!form) {
      console.log(page);
      return;
    }
    const fields = [...page.matchAll(/<input[^>]*name="([^"]+)"[^>]*value="([^"]*)"/g)];
    const body = new URLSearchParams(fields.map(([, name, value]) => [name, value]));
    if (page.includes('name="confirm"')) body.set('confirm', 'yes');
    next = { url: new URL(form[1], next.url), method: 'POST', body };
  }
  throw new Error('too many steps');
}

const [mode, argument] = process.argv.slice(2);
await (mode === 'provider' ? provide(Number(argument)) : use(argument));
