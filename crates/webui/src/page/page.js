// The frame of the page: which view is shown, requests with the key, and how elements are made.
import { say, language, setLanguage } from './words.js';
import * as recipe from './train.js';
import * as runs from './runs.js';
import * as chat from './chat.js';

/** An element; of attributes `on…` are listeners, and what is no attribute is a property. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else if (name.startsWith('aria-') || name === 'for' || name === 'list') element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.flat().filter(child => child !== null && child !== undefined && child !== false));
  return element;
}

const key = () => localStorage.getItem('sft.key') ?? '';

/** What the server answers; throws what it refuses, in words. */
export async function ask(path, { method = 'GET', body, signal } = {}) {
  let answer;
  try {
    answer = await fetch(`api/${path}`, {
      method, signal,
      headers: { Authorization: `Bearer ${key()}`, ...(body === undefined ? {} : { 'Content-Type': 'application/json' }) },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    lost(say('The server cannot be reached. Runs go on without it.'));
    throw new Error(say('The server cannot be reached. Runs go on without it.'));
  }
  lost('');
  const told = await answer.json().catch(() => ({}));
  if (answer.ok) return told;
  const error = new Error(told.error ?? `${answer.status} ${answer.statusText}`);
  error.status = answer.status;
  if (answer.status === 401) askForKey(error.message);
  throw error;
}

function lost(text) {
  document.getElementById('lost').textContent = text;
}

function askForKey(why) {
  leave();
  const input = make('input', { type: 'password', autocomplete: 'off', 'aria-label': 'key' });
  const take = event => {
    event.preventDefault();
    localStorage.setItem('sft.key', input.value.trim().replace(/^.*#key=/, ''));
    show();
  };
  document.getElementById('main').replaceChildren(make('form', { className: 'card', onsubmit: take },
    make('p', {}, why), make('div', { className: 'row' }, input, make('button', { className: 'main' }, say('Open')))));
}

/** Calls `work` now and then again, while the view is shown and the page can be seen. */
export function repeat(work, every) {
  let timer = 0, ended = false;
  const round = async () => {
    if (!document.hidden) await work().catch(() => {});
    if (!ended) timer = setTimeout(round, every);
  };
  round();
  return () => {
    ended = true;
    clearTimeout(timer);
  };
}

/** Goes to a view. */
export const go = place => { location.hash = place; };

// What the view that is shown does while it is shown.
let leave = () => {};

const machine = main => {
  const said = make('pre', {}, '…');
  main.replaceChildren(make('section', { className: 'card' }, make('h3', {}, say('What this machine has')), said));
  ask('look', { method: 'POST', body: { what: 'machine' } })
    .then(told => { said.textContent = told.said + told.errors; })
    .catch(error => { said.textContent = error.message; });
  return () => {};
};

const views = { recipe: recipe.show, runs: runs.show, compare: runs.compare, chat: chat.show, machine };

function show() {
  leave();
  const given = location.hash.match(/^#key=(.*)$/);
  if (given) {
    localStorage.setItem('sft.key', decodeURIComponent(given[1]));
    // The key does not stay where others could read it.
    history.replaceState(null, '', '#recipe');
  }
  const [view, ...rest] = location.hash.slice(1).split('/');
  const shown = views[view] ? view : 'recipe';
  document.documentElement.lang = language() === 'zh' ? 'zh-CN' : 'en';
  for (const link of document.querySelectorAll('nav a')) {
    link.textContent = say(link.dataset.say);
    const name = link.getAttribute('href').slice(1);
    if (name === shown || (name === 'runs' && shown === 'compare')) link.setAttribute('aria-current', 'page');
    else link.removeAttribute('aria-current');
  }
  document.getElementById('language').textContent = language() === 'zh' ? 'English' : '中文';
  leave = views[shown](document.getElementById('main'), rest.map(decodeURIComponent)) ?? (() => {});
}

document.getElementById('language').addEventListener('click', () => {
  setLanguage(language() === 'zh' ? 'en' : 'zh');
  show();
});
window.addEventListener('hashchange', show);
show();
