// Drives a real Chromium over the page: looks, presses keys, asks axe, and takes the pictures.
//
// node drive.mjs MODULES BROWSER DAEMON EMPTY-DAEMON FOLDER
// Prints one line for each thing that is wrong; no line means that all is well.
import { createRequire } from 'node:module';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';

const [modules, executablePath, daemon, emptyDaemon, folder] = process.argv.slice(2);
const require = createRequire(join(modules, 'package.json'));
const puppeteer = require('puppeteer-core');
const axe = readFileSync(require.resolve('axe-core/axe.min.js'), 'utf8');

let wrong = 0;
function complain(where, what) { wrong++; console.log(`${where}: ${what}`); }

const browser = await puppeteer.launch({
  executablePath,
  args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'],
});

async function open(name, address, { width = 1200, scheme = 'light' } = {}) {
  const page = await browser.newPage();
  // A policy that blocks a part of the page is reported here, too.
  page.on('console', message => { if (message.type() === 'error') complain(name, message.text()); });
  page.on('pageerror', error => complain(name, `the script failed: ${error.message}`));
  await page.setViewport({ width, height: 800, deviceScaleFactor: width < 500 ? 2 : 1 });
  await page.emulateMediaFeatures([{ name: 'prefers-color-scheme', value: scheme }]);
  await page.goto(address, { waitUntil: 'domcontentloaded' });
  await page.waitForSelector('#live[data-state=live]');
  return page;
}

async function judge(name, page) {
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => globalThis.axe.run());
  for (const { impact, id, help, nodes } of violations)
    if (impact === 'serious' || impact === 'critical') complain(name, `axe: ${id} (${impact}): ${help}: ${nodes[0].html.slice(0, 160)}`);
  const beyond = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
  if (beyond > 0) complain(name, `the page is ${beyond} pixels wider than the screen`);
}

async function picture(name, address, options = {}) {
  const page = await open(name, address, options);
  if (options.before) await options.before(page);
  await page.evaluate(() => document.activeElement && document.activeElement.blur());
  await page.screenshot({ path: join(folder, `page-${name}.png`), fullPage: true });
  await judge(name, page);
  await page.close();
}

/** Presses a key and waits until what is expected holds. */
async function press(page, key, what, holds) {
  await page.keyboard.press(key);
  try { await page.waitForFunction(holds, { timeout: 15000 }); } catch { complain('keyboard', `${key} does not ${what}`); }
}

const { leaks } = await (await fetch(`${daemon}/api/v1/leaks`)).json();
const { targets } = await (await fetch(`${daemon}/api/v1/targets`)).json();
const leak = leaks.find(leak => leak.kind === 'goroutine' && leak.site.includes('handler-timeout'));
const timer = leaks.find(leak => leak.kind === 'timer');
const refused = targets.find(target => target.status === 'refused');
const part = encodeURIComponent, site = leak => `${daemon}/#/t/${part(leak.id)}/${leak.kind}/${part(leak.site)}`;

await picture('overview', `${daemon}/`);
await picture('dark', `${daemon}/`, { scheme: 'dark' });
await picture('service', `${daemon}/#/t/${part(leak.id)}`);
await picture('site', site(leak), { before: page => page.waitForSelector('[data-icicle]') });
await picture('site-dark', site(leak), { scheme: 'dark', before: page => page.waitForSelector('[data-icicle]') });
await picture('timer', site(timer), { before: page => page.waitForSelector('.evidence') });
await picture('phone', `${daemon}/`, { width: 390 });
await picture('phone-site', site(leak), { width: 390, scheme: 'dark', before: page => page.waitForSelector('[data-icicle]') });
await picture('phone-service', `${daemon}/#/t/${part(leak.id)}`, { width: 390 });
await picture('narrow', site(leak), { width: 320, before: page => page.waitForSelector('[data-icicle]') });
await picture('refused', `${daemon}/#/t/${part(refused.id)}`);
await picture('empty', `${emptyDaemon}/`);

// Nothing but the keyboard.
{
  const page = await open('keyboard', `${daemon}/`);
  await press(page, 'j', 'go to the first line', () => document.activeElement.hasAttribute('data-row'));
  await press(page, 'Enter', 'open a site', () => location.hash.split('/').length === 5 && document.querySelector('.evidence'));
  await press(page, 'u', 'go up to the service', () => location.hash.split('/').length === 3 && document.querySelector('td.site'));
  await press(page, '/', 'go to the filter', () => document.activeElement.id === 'filter');
  await page.keyboard.type('nothing is called like this');
  await press(page, 'Tab', 'filter', () => document.body.textContent.includes('No call site matches'));
  await page.focus('#filter');
  await press(page, 'Escape', 'take the filter away', () => document.querySelector('td.site'));
  await press(page, 'u', 'go up to the overview', () => location.hash === '#/');
  await press(page, '?', 'open the help', () => document.getElementById('help').open);
  await judge('help', page);
  await press(page, 'Escape', 'close the help', () => !document.getElementById('help').open);
  await press(page, 'p', 'hold the page', () => document.getElementById('live').dataset.state === 'paused');
  await press(page, 'p', 'let the page go on', () => document.getElementById('live').dataset.state === 'live');
  await press(page, 't', 'change the theme', () => document.documentElement.dataset.theme === 'light');
  await page.close();
}
{
  const page = await open('keyboard', site(leak));
  await page.waitForSelector('[data-icicle] g');
  await page.focus('[data-icicle] g[tabindex="0"]');
  await press(page, 'ArrowDown', 'go to a callee', () => document.activeElement.dataset.path.split('/').length === 3);
  await press(page, 'Enter', 'zoom', () => document.querySelector('[data-do=unzoom]') && document.activeElement.dataset.path);
  // The next answer redraws the page: whoever is at a frame stays there.
  const path = await page.evaluate(() => document.activeElement.dataset.path);
  await page.evaluate(() => refresh());
  if (await page.evaluate(() => document.activeElement.dataset.path) !== path) complain('keyboard', 'a new answer takes the focus away');
  await press(page, 'Escape', 'show all again', () => !document.querySelector('[data-do=unzoom]'));
  await page.close();
}

// A daemon that cannot be reached any more: what was known stays.
{
  const page = await open('no-answer', `${daemon}/`);
  page.removeAllListeners('console');
  await page.setOfflineMode(true);
  await page.waitForSelector('.banner', { timeout: 20000 });
  if (!await page.$('.leaks li')) complain('no-answer', 'what was known is gone');
  await page.screenshot({ path: join(folder, 'page-no-answer.png'), fullPage: true });
  await judge('no-answer', page);
  await page.setOfflineMode(false);
  await page.waitForSelector('#live[data-state=live]', { timeout: 20000 });
  await page.close();
}

await browser.close();
process.exit(wrong ? 1 : 0);
